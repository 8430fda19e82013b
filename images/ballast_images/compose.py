"""Runs the containers of a Compose file with the engine alone, for demos and tests.

It takes the file's word for what a container is, so that what is tried is what people run. It knows
the keys that our own file has, refuses others, and leaves order and restarts to its caller.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ballast_images.engine import CALL_SECONDS, Engine, EngineError, execute
from ballast_protocol.errors import InternalError, OperatorError, TimedOutError

_CHARGE_V2 = "/sys/fs/cgroup/memory.current"
_CHARGE_V1 = "/sys/fs/cgroup/memory/memory.usage_in_bytes"
_IGNORED = {"build", "depends_on", "restart", "image", "command", "stop_grace_period"}
_FLAGS = {
    "user": "--user",
    "hostname": "--hostname",
    "tmpfs": "--tmpfs",
    "cap_drop": "--cap-drop",
    "security_opt": "--security-opt",
    "mem_limit": "--memory",
    "entrypoint": "--entrypoint",
}


@dataclass(frozen=True)
class Project:
    """What a Compose file says.

    Attributes:
        services: Each container, by name.
        networks: The networks that it needs.
        volumes: The volumes.
    """

    services: Mapping[str, Mapping[str, Any]]
    networks: tuple[str, ...]
    volumes: tuple[str, ...]


def read_project(path: Path) -> Project:
    """Read a Compose file.

    Raises:
        OperatorError: It cannot be read, or is none.
    """
    try:
        document = yaml.safe_load(path.read_text())
        return Project(
            services=document["services"],
            networks=tuple(document.get("networks", ())),
            volumes=tuple(document.get("volumes", ())),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise OperatorError(f"{path} is no Compose file: {error}") from error


def run_arguments(service: Mapping[str, Any], prefix: str) -> list[str]:
    """Return what `run` is told before the image.

    Args:
        service: What the file says.
        prefix: What the names of networks and volumes begin with.

    Raises:
        InternalError: It says something that is not translated.
    """
    words: list[str] = []
    for key, value in service.items():
        if key in _IGNORED:
            continue
        if key in _FLAGS:
            for each in value if isinstance(value, list) else (value,):
                words += [_FLAGS[key], str(each)]
        elif key == "read_only":
            words += ["--read-only"] if value else []
        elif key == "volumes":
            for each in value:
                words += ["--volume", f"{prefix}-{each}"]
        elif key == "networks":
            for each in value:
                words += ["--network", f"{prefix}-{each}"]
        elif key == "network_mode":
            words += ["--network", str(value)]
        else:
            raise InternalError(f"a service of the Compose file has a key {key!r}, unknown here")
    return words


class Stack:
    """The containers of one project; a context manager that removes them, networks and volumes.

    Args:
        engine: The engine, proved.
        project: What to run.
        prefix: What the names of everything begin with.
    """

    def __init__(self, engine: Engine, project: Project, prefix: str) -> None:
        self.engine = engine
        self.project = project
        self._prefix = prefix
        self._started: list[str] = []

    def __enter__(self) -> Stack:
        try:
            for network in self.project.networks:
                self.engine.call("network", "create", f"{self._prefix}-{network}")
            for volume in self.project.volumes:
                self.engine.call("volume", "create", f"{self._prefix}-{volume}")
        except BaseException:
            self._remove_all()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove_all()

    def _remove_all(self) -> None:
        for service in reversed(self._started):
            self._quietly("kill", self.container(service))
            self._quietly("rm", "--force", self.container(service))
        for volume in self.project.volumes:
            self._quietly("volume", "rm", "--force", f"{self._prefix}-{volume}")
        for network in self.project.networks:
            self._quietly("network", "rm", f"{self._prefix}-{network}")

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self._prefix}-{service}"

    def command(self, service: str, *flags: str, **changes: Any) -> list[str]:
        """Return the engine's command line that runs a service.

        Args:
            service: Which.
            flags: More for `run`.
            changes: What is to be other than the file says; None for not at all.
        """
        wanted = {**self.project.services[service], **changes}
        wanted = {key: value for key, value in wanted.items() if value is not None}
        aliases = ["--network-alias", service] if "networks" in wanted else []
        return self.engine.run_command(
            *("--name", self.container(service), *flags, *aliases),
            *run_arguments(wanted, self._prefix),
            wanted["image"],
            *wanted.get("command", ()),
        )

    def start(self, service: str, *flags: str, **changes: Any) -> None:
        """Start a service in the background; arguments as for `command`."""
        command = self.command(service, "--detach", *flags, **changes)
        self._started.append(service)
        execute(command, CALL_SECONDS)

    def end(self, service: str, *, timeout_seconds: int = 30) -> int:
        """Have a container ended by SIGTERM, and return its exit status; it is not removed."""
        self._call("stop", f"--time={timeout_seconds}", service)
        return int(self._call("inspect", "--format={{.State.ExitCode}}", service))

    def kill(self, service: str) -> None:
        """Kill a container, and remove it: another one can take its name and its place."""
        self._call("kill", service)
        self.remove(service)

    def remove(self, service: str) -> None:
        """Remove a container, whatever it does."""
        self._call("rm", "--force", service)
        self._started.remove(service)

    def run_inside(self, service: str, *command: str, timeout_seconds: float = 120.0) -> str:
        """Run a command in a running container, and return what it prints."""
        return self.engine.call(
            "exec", self.container(service), *command, timeout_seconds=timeout_seconds
        )

    def is_running(self, service: str) -> bool:
        """Return whether a container runs."""
        return self._call("inspect", "--format={{.State.Running}}", service).strip() == "true"

    def log(self, service: str) -> str:
        """Return what a container has said."""
        words = self.engine.command("logs", self.container(service))
        result = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False
        )
        return result.stdout + result.stderr

    def charged_bytes(self, service: str) -> int:
        """Return how much memory the kernel charges a running container for."""
        return int(
            self.run_inside(service, "sh", "-c", f"cat {_CHARGE_V2} 2>&- || cat {_CHARGE_V1}")
        )

    def _call(self, verb: str, *words: str) -> str:
        *flags, service = words
        return self.engine.call(verb, *flags, self.container(service))

    def _quietly(self, *words: str) -> None:
        with suppress(EngineError, TimedOutError):
            self.engine.call(*words)

"""docker or podman: which of them works here, and with what.

What counts is what an engine does, not that it is installed: there are machines with only docker's
client, and machines where podman's default runtime cannot start a container but another one can.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ballast_protocol.errors import OperatorError, TimedOutError

ENGINE_VARIABLE = "BALLAST_ENGINE"
"""Names the engine to use, docker or podman, where both work."""

NAMES = ("docker", "podman")

INSTALL_HINT = (
    "Install podman or docker; on Debian, as root: `make engine`, which is "
    "apt-get install podman runc buildah mmdebstrap."
)

CALL_SECONDS = 120.0
BUILD_SECONDS = 1800.0

_RUNTIMES = ("runc", "crun")
_LIMITS = (("nofile", resource.RLIMIT_NOFILE, 4096), ("nproc", resource.RLIMIT_NPROC, 1024))
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE")


class EngineError(OperatorError):
    """A command of an engine has failed."""


@dataclass(frozen=True)
class Engine:
    """A container engine.

    Attributes:
        name: docker or podman.
        program: Its program.
        options: What it is always told: `--runtime runc`.
        run_options: What `run` is told besides: limits that may be set here.
    """

    name: str
    program: Path
    options: tuple[str, ...] = ()
    run_options: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        """Return a command line."""
        return [str(self.program), *self.options, *arguments]

    def run_command(self, *arguments: str) -> list[str]:
        """Return the command line of `run` with some arguments."""
        return self.command("run", *self.run_options, *arguments)

    def call(self, *arguments: str, timeout_seconds: float = CALL_SECONDS) -> str:
        """Run the engine, and return what it prints.

        Raises:
            EngineError: It has failed; the message is what it said.
            TimedOutError: It did not end in time.
        """
        return execute(self.command(*arguments), timeout_seconds)

    def run(self, *arguments: str, timeout_seconds: float = CALL_SECONDS) -> str:
        """Run a container, and return what is printed.

        Raises:
            EngineError: It could not be started, or ended with a status other than 0.
            TimedOutError: It did not end in time.
        """
        return execute(self.run_command(*arguments), timeout_seconds)

    def has_image(self, image: str) -> bool:
        """Return whether an image is here."""
        try:
            self.call("image", "inspect", image)
        except EngineError:
            return False
        return True

    def build(self, root: Path, file: Path, image: str, *arguments: str) -> None:
        """Build an image.

        Raises:
            EngineError: It cannot be built; the message ends with what was said last.
            TimedOutError: It was not built in time.
        """
        own = ("--network=host", *_certificates())
        if self.name == "podman":
            # Healthchecks are in docker's format only; chroot needs no runtime that works.
            own += ("--isolation=chroot", "--format=docker", "--layers")
        words = ("build", *own, "-f", str(file), "-t", image, *arguments, str(root))
        execute(self.command(*words), BUILD_SECONDS)


def execute(command: Sequence[str], timeout_seconds: float) -> str:
    """Run a command, and return what it prints.

    Raises:
        EngineError: It has failed; the message is what it said.
        TimedOutError: It did not end in time.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(
            f"{' '.join(command[:3])} did not end in {timeout_seconds:g} s"
        ) from error
    except OSError as error:
        raise EngineError(f"cannot run {command[0]}: {error.strerror}") from error
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip())[-2000:]
        raise EngineError(f"{' '.join(command[:4])} ...: status {result.returncode}: {said}")
    return result.stdout


def _certificates() -> tuple[str, ...]:
    """Return what a build is told of a proxy that signs with an authority of its own."""
    for variable in _CA_VARIABLES:
        path = os.environ.get(variable)
        if path and Path(path).is_file():
            return ("--secret", f"id=ca,src={path}")
    return ()


def find_engine(wanted: str | None = None) -> Engine:
    """Return an engine that answers; whether it runs containers is for `prove`.

    Args:
        wanted: docker or podman; by default `BALLAST_ENGINE`, or the first that answers.

    Raises:
        OperatorError: None does; the message tells why of each.
    """
    wanted = wanted or os.environ.get(ENGINE_VARIABLE) or None
    if wanted is not None and wanted not in NAMES:
        raise OperatorError(f"{wanted!r} is no engine: docker or podman")
    reasons = []
    for name in (wanted,) if wanted else NAMES:
        program = shutil.which(name)
        if program is None:
            reasons.append(f"{name} is not installed")
            continue
        engine = Engine(name, Path(program))
        try:
            engine.call("info")
        except (EngineError, TimedOutError) as error:
            reasons.append(f"{name} does not answer ({_last_line(str(error))})")
        else:
            return engine
    raise OperatorError(f"no container engine works here: {'; '.join(reasons)}", hint=INSTALL_HINT)


def prove(engine: Engine, image: str) -> Engine:
    """Return the engine with the options with which it really runs a container of an image.

    Raises:
        OperatorError: It runs none, whatever it is told.
    """
    reasons = []
    for candidate in _variants(engine):
        try:
            candidate.run("--rm", "--entrypoint", "/bin/true", image)
        except (EngineError, TimedOutError) as error:
            tried = " ".join((*candidate.options, *candidate.run_options)) or "as it is"
            reasons.append(f"{tried}: {_last_line(str(error))}")
        else:
            return candidate
    raise OperatorError(
        f"{engine.name} is here, but cannot run a container: {'; '.join(reasons)}",
        hint="Where containers are nested, the outer one may have to allow it.",
    )


def _variants(engine: Engine) -> Iterator[Engine]:
    """Yield what may work: as it is, without raising limits, with another runtime."""
    limits = _limits()
    yield engine
    yield replace(engine, run_options=limits)
    if engine.name == "podman":
        for runtime in _RUNTIMES:
            if shutil.which(runtime, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
                options = ("--runtime", runtime)
                yield replace(engine, options=options)
                yield replace(engine, options=options, run_options=limits)


def _limits() -> tuple[str, ...]:
    """Return limits that nobody has to be allowed to raise, and that are enough for us."""
    words = []
    for name, number, enough in _LIMITS:
        _, hard = resource.getrlimit(number)
        limit = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        words += ["--ulimit", f"{name}={limit}:{limit}"]
    return tuple(words)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][-300:] if text.strip() else "it said nothing"

"""Who keeps a daemon's descriptors, and how a process becomes the keeper."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ballast.daemon.config import VmConfig
from ballast.daemon.paths import runtime_root
from ballast.keeper.channel import pair
from ballast.keeper.client import connect
from ballast.keeper.supervisor import KEEPER_FD_VARIABLE
from ballast.keeper.worker import peer_pid
from ballast_protocol.errors import OperatorError, TimedOutError

POLL_SECONDS = 0.1

NewKeeper = Callable[[], tuple[socket.socket, int]]
"""Returns a channel to a keeper, which does not know us yet, and its process; may raise OSError."""


def default_socket() -> Path:
    """Return where a keeper listens that runs as a service."""
    return runtime_root() / "keeper.sock"


def channel_from(environment: Mapping[str, str]) -> socket.socket | None:
    """Return the channel to the keeper that started this process; None if none did."""
    fd = environment.get(KEEPER_FD_VARIABLE, "")
    if not fd.isdigit():
        return None
    try:
        sock = socket.socket(fileno=int(fd))
    except OSError as error:
        raise OperatorError(
            f"{KEEPER_FD_VARIABLE}={fd} is no channel to a keeper: {error.strerror}",
            hint="It is for processes that a keeper starts: unset it.",
        ) from error
    sock.set_inheritable(False)
    return sock


def keeper_command(*arguments: str) -> list[str]:
    """Return the command line of a keeper."""
    return [sys.executable, "-P", "-m", "ballast.keeper", *arguments]


def worker_command() -> list[str]:
    """Return the command line that starts a process like this one."""
    return [sys.executable, "-P", "-m", "ballast.cli.main", *sys.argv[1:]]


def become_keeper(*arguments: str) -> NoReturn:
    """Go on as a keeper, with the same process id and what was inherited."""
    command = keeper_command(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def become_parent(configs: Sequence[VmConfig]) -> NoReturn:
    """Go on as the keeper of a worker that does what this process was told to do.

    Raises:
        OperatorError: An inherited descriptor is not what it should be.
    """
    holds = [f"--hold={_inherited_name(each)}={each.fd}" for each in configs if each.fd is not None]
    become_keeper(*holds, "--", *worker_command())


def _inherited_name(config: VmConfig) -> str:
    """Return the name under which a VM's inherited socket is to be held."""
    assert config.fd is not None
    try:
        with socket.socket(fileno=os.dup(config.fd)) as sock:
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        os.set_inheritable(config.fd, True)
    except OSError as error:
        raise OperatorError(
            f"file descriptor {config.fd} is not a socket: {error.strerror}",
            hint="--fd takes a Unix socket, listening or connected, open in this process.",
        ) from error
    return f"{config.name}/{'listener' if listening else 'connection'}"


def wait_for_keeper(
    path: Path, timeout_seconds: float, say: Callable[[str], None]
) -> socket.socket:
    """Return a channel to the keeper at a path, as soon as one listens.

    Args:
        path: Where.
        timeout_seconds: How long to wait for one.
        say: Told once, if there is need to wait.

    Raises:
        TimedOutError: None listens in time.
        OperatorError: The path cannot be used.
    """
    deadline, is_told = time.monotonic() + timeout_seconds, False
    while True:
        try:
            return connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError as error:
            raise OperatorError(
                f"cannot connect to a keeper at {path}: {error.strerror or error}"
            ) from error
        if time.monotonic() > deadline:
            raise TimedOutError(
                f"no keeper listens at {path}",
                hint="Start `ballast keeper` first, with the same --socket, beside QEMU.",
            )
        if not is_told:
            say(f"waiting for a keeper at {path}")
            is_told = True
        time.sleep(POLL_SECONDS)


def keeper_at(path: Path) -> NewKeeper:
    """Return what finds a keeper that runs as a service."""

    def find() -> tuple[socket.socket, int]:
        sock = connect(str(path), serves_already=True)
        return sock, peer_pid(sock)

    return find


def keeper_from(command: Sequence[str]) -> NewKeeper:
    """Return what starts a new keeper, in place of a parent that was killed.

    Args:
        command: What starts a worker.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[socket.socket, int]:
        # An earlier one that has ended is waited for here, so that it does not stay a zombie.
        started[:] = [each for each in started if each.poll() is None]
        ours, theirs = pair()
        with theirs:
            try:
                process = subprocess.Popen(
                    keeper_command("--adopt", str(theirs.fileno()), "--", *command),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        started.append(process)
        return ours, process.pid

    return start

"""systemd's part in the file descriptor store, as `service.c` and `sd_listen_fds(3)` have it."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ballast.streams.fds import is_same_description

_START = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[1], sys.argv[1:])
"""


class ServiceManager:
    """Receives notifications, holds descriptors, and starts the service with them.

    Attributes:
        held: The descriptors with their names, in order; a name may be there twice.
        states: Everything else that was notified.
    """

    def __init__(self, path: Path, room: int = 64) -> None:
        self.held: list[tuple[str, int]] = []
        self.states: list[str] = []
        self._path = path
        self._room = room
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.held]

    @property
    def environment(self) -> dict[str, str]:
        """What a service is told, except for what it inherits."""
        return {"NOTIFY_SOCKET": str(self._path), "FDSTORE": str(self._room)}

    def read(self) -> None:
        """Do what all notifications that have come ask for."""
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
            except BlockingIOError:
                return
            fds = array.array("i")
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            self._notified(dict(line.split("=", 1) for line in data.decode().split("\n")), fds)

    def _notified(self, message: dict[str, str], fds: Sequence[int]) -> None:
        name = message.get("FDNAME", "stored")
        assert len(name) <= 255
        assert ":" not in name
        assert name.isascii()
        if "FDSTORE" in message:
            for fd in fds:
                # It suppresses what it has already, under whatever name.
                if any(is_same_description(fd, held) for _, held in self.held):
                    os.close(fd)
                elif len(self.held) >= self._room:
                    os.close(fd)  # with no more than a line in its debug log
                else:
                    self.held.append((name, fd))
        elif "FDSTOREREMOVE" in message:
            for held in [each for each in self.held if each[0] == name]:
                self.held.remove(held)
                os.close(held[1])
        else:
            self.states += [f"{key}={value}" for key, value in message.items()]

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start the service with everything that is held, as descriptors from 3 on."""
        self.read()
        inherited = [os.dup(fd) for _, fd in self.held]
        high = [os.dup2(fd, 200 + index) for index, fd in enumerate(inherited)]

        def place() -> None:
            for number, fd in enumerate(high, 3):
                os.dup2(fd, number)

        try:
            return subprocess.Popen(
                [sys.executable, "-c", _START, *command],
                env={
                    **os.environ,
                    **self.environment,
                    "LISTEN_FDS": str(len(self.held)),
                    "LISTEN_FDNAMES": ":".join(self.names),
                    **environment,
                },
                preexec_fn=place,
                pass_fds=range(3, 3 + len(high)) if high else (),
            )
        finally:
            for fd in (*inherited, *high):
                os.close(fd)

    def close(self) -> None:
        """Let everything go."""
        self.read()
        self._sock.close()
        for _, fd in self.held:
            os.close(fd)
        self.held = []

"""systemd as the keeper: its file descriptor store, `FileDescriptorStoreMax=` of a service.

What is stored comes back as inherited descriptors (`sd_listen_fds_with_names(3)`) when the service
is started again. systemd does not replace a descriptor of the same name, it holds both. So each
name goes out with a number, and the highest counts: `web/kick.0@7`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import MutableMapping, Sequence

from ballast.keeper.channel import send
from ballast.keeper.messages import encode
from ballast.streams.fds import is_same_description
from ballast.streams.fdstore import check_name

log = logging.getLogger(__name__)

FIRST_FD = 3
"""`SD_LISTEN_FDS_START`."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def is_offered(environment: MutableMapping[str, str]) -> bool:
    """Return whether systemd (254 or later) says that it holds descriptors for this service."""
    room = environment.get("FDSTORE", "")
    return bool(environment.get("NOTIFY_SOCKET")) and room.isdigit() and int(room) > 0


class SystemdStore:
    """Leaves descriptors with systemd; implements `streams.fdstore.FdStore`.

    Attributes:
        accepts: False: systemd does not accept connections for us.
    """

    accepts = False

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Connect to systemd, and find what it held for us.

        Args:
            environment: This process's; what it says of inherited descriptors is removed.

        Raises:
            OSError: Nobody listens at `NOTIFY_SOCKET`.
        """
        self._numbers: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._serial = 0
        room = environment.get("FDSTORE", "")
        self._room = int(room) if room.isdigit() else 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.connect(environment["NOTIFY_SOCKET"].replace("@", "\0", 1))
        self._inherit(environment)

    def _inherit(self, environment: MutableMapping[str, str]) -> None:
        pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
        if pid != str(os.getpid()) or not count.isdigit():
            return
        labels = names.split(":")[: int(count)]
        self._find(labels, range(FIRST_FD, FIRST_FD + len(labels)))

    def _find(self, labels: Sequence[str], fds: Sequence[int]) -> None:
        """Take over what is ours of inherited descriptors: what has a number."""
        ours = [(*_numbered(label), fd) for label, fd in zip(labels, fds, strict=True)]
        for number, name, fd in sorted(each for each in ours if each[0]):
            os.set_inheritable(fd, False)
            if name in self._left:
                # Its successor was stored, and we ended before it could be removed.
                os.close(self._left[name])
                self._remove(name, self._numbers[name])
            self._numbers[name], self._left[name] = number, fd
            self._serial = max(self._serial, number)

    def take_all(self) -> dict[str, int]:
        """Return what the predecessor left, by name; each descriptor is the caller's."""
        left, self._left = self._left, {}
        self._held.update((name, os.dup(fd)) for name, fd in left.items())
        return left

    def put(self, name: str, fd: int) -> None:
        """Leave a duplicate of a descriptor, instead of an older one of that name.

        Raises:
            InternalError: The name cannot be one.
        """
        check_name(name)
        held = self._held.get(name)
        if held is not None and is_same_description(held, fd):
            return
        self._held[name] = self._distinct(fd)
        self._serial += 1
        older, self._numbers[name] = self._numbers.get(name), self._serial
        # What is to go is for us to say: systemd would let a connection go that hangs up.
        label = f"{name}@{self._serial}"
        if self._room and len(self._held) > self._room:
            log.error("%s cannot be held by systemd: raise FileDescriptorStoreMax=", name)
        self._send(encode(FDSTORE=1, FDNAME=label, FDPOLL=0), self._held[name])
        if held is not None and older is not None:
            self._remove(name, older)
            os.close(held)

    def _distinct(self, fd: int) -> int:
        """Return a duplicate that systemd does not take for one that it has: it holds none twice.

        Only files of guest memory come under several names.
        """
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if is_file and any(is_same_description(each, fd) for each in self._held.values()):
            with contextlib.suppress(PermissionError):
                return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        return os.dup(fd)

    def drop(self, name: str) -> None:
        """Let a descriptor go, if there is one of that name."""
        if name in self._held:
            os.close(self._held.pop(name))
            self._remove(name, self._numbers.pop(name))

    def _remove(self, name: str, number: int) -> None:
        self._send(encode(FDSTOREREMOVE=1, FDNAME=f"{name}@{number}"))

    def ready(self) -> None:
        """Tell that this process serves."""
        self._send(encode(READY=1))

    def _send(self, message: bytes, *fds: int) -> None:
        while True:
            try:
                send(self._sock, message, fds)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                time.sleep(0.001)
            else:
                return

    def close(self) -> None:
        """Hang up; what is stored stays so."""
        self._sock.close()
        for fd in (*self._left.values(), *self._held.values()):
            os.close(fd)
        self._left, self._held = {}, {}


def _numbered(label: str) -> tuple[int, str]:
    name, _, number = label.rpartition("@")
    return (int(number), name) if number.isdigit() else (0, label)

"""The way out of the guest: a virtio-serial port, vsock, or a unix socket where there is neither.

A virtio-serial port is a character device with habits of its own (Linux's virtio_console.c). While
nobody listens on the host it can be opened, reads return nothing, writes find no room, and poll
reports a hang-up at once, every time. It comes alive by itself when the host does. Closing it in
the meantime would make QEMU tell its management of every closing and opening, so it stays open.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ballast_protocol.errors import OperatorError

VSOCK_PORT = 5170
"""The vsock port that the daemon listens on."""

_READ_SIZE = 64 * 1024
_CONNECT_SECONDS = 1.0
_GONE = (errno.ENODEV, errno.ENXIO, errno.EPIPE, errno.ECONNRESET, errno.EIO)


class Channel:
    """An open, non-blocking way to the host.

    Attributes:
        revives: Whether a host that went away can come back on this very channel.
    """

    def __init__(self, fd: int, *, revives: bool) -> None:
        self.revives = revives
        self._fd = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """Return the file descriptor to poll."""
        return self._fd

    def read(self) -> bytes | None:
        """Return what has arrived; None if nothing has, nothing (`b""`) if nobody is there.

        Raises:
            ConnectionError: If the channel itself is gone, such as a port that was unplugged.
        """
        try:
            return os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _as_connection_error(error) from error

    def write(self, data: bytes | bytearray) -> int:
        """Write what there is room for and return how many bytes that was.

        Raises:
            ConnectionError: As for `read`.
        """
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _as_connection_error(error) from error

    def host_is_there(self) -> bool:
        """Tell whether anybody listens on the other end."""
        poller = select.poll()
        poller.register(self._fd, 0)
        return not poller.poll(0)

    def close(self) -> None:
        """Close the channel."""
        os.close(self._fd)


def _as_connection_error(error: OSError) -> OSError:
    if error.errno in _GONE:
        return ConnectionError(error.errno, error.strerror)
    return error


@dataclass(frozen=True)
class Device:
    """A character device, by its path."""

    path: str

    def __str__(self) -> str:
        return self.path

    def open(self) -> Channel | None:
        """Open the device; None if there is no such device now.

        Raises:
            OperatorError: If it is there and cannot be used.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise _refused(self.path, error) from error
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            os.close(fd)
            raise OperatorError(f"{self.path} is not a character device")
        return Channel(fd, revives=True)


def _refused(path: str, error: OSError) -> OperatorError:
    hints = {
        errno.EACCES: "ports belong to root: run as root, or let udev give the port to a group",
        errno.EPERM: "ports belong to root: run as root, or let udev give the port to a group",
        errno.EBUSY: "a port has one reader at a time: is another agent running?",
    }
    return OperatorError(
        f"{path} cannot be opened: {error.strerror}", hint=hints.get(error.errno or 0, "")
    )


@dataclass(frozen=True)
class NamedPort:
    """A virtio-serial port, by the name that QEMU gave it.

    Attributes:
        name: As in `-device virtserialport,name=`.
        sysfs: Where sysfs is mounted.
        dev: Where devices are.
    """

    name: str
    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")

    def __str__(self) -> str:
        return f"virtio-serial port {self.name}"

    def open(self) -> Channel | None:
        """Open the port; None if the machine has no such port now.

        Raises:
            OperatorError: If it is there and cannot be used.
        """
        path = self.find()
        return None if path is None else Device(str(path)).open()

    def find(self) -> Path | None:
        """Return the port's device; None if there is none.

        The kernel itself names the ports in sysfs; the links in `/dev/virtio-ports` are udev's, and
        small guests have no udev.
        """
        for name_file in sorted(self.sysfs.glob("class/virtio-ports/*/name")):
            try:
                name = name_file.read_text(encoding="utf-8").strip()
            except OSError:
                continue  # unplugged since it was listed
            if name == self.name:
                return self.dev / name_file.parent.name
        link = self.dev / "virtio-ports" / self.name
        return link if link.exists() else None


@dataclass(frozen=True)
class UnixSocket:
    """A unix socket that the daemon listens on, for containers and for trying the agent out."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def open(self) -> Channel | None:
        """Connect; None if nobody listens now.

        Raises:
            OperatorError: If the socket may not be used, or there cannot be one of that name.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(self.path)
            except (FileNotFoundError, ConnectionError):
                return None
            except OSError as error:
                raise OperatorError(f"cannot connect to {self.path}: {error}") from error
            return Channel(sock.detach(), revives=False)


@dataclass(frozen=True)
class Vsock:
    """A vsock port that the daemon listens on.

    Attributes:
        port: Port number.
        cid: Context id of the host.
    """

    port: int
    cid: int = 2

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"

    def open(self) -> Channel | None:
        """Connect; None if this machine has no vsock, or nobody listens now."""
        if not hasattr(socket, "AF_VSOCK"):
            return None
        try:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
                sock.settimeout(_CONNECT_SECONDS)
                sock.connect((self.cid, self.port))
                return Channel(sock.detach(), revives=False)
        except OSError:
            return None


@dataclass(frozen=True)
class FirstOf:
    """Several places, of which the first that is there is taken.

    Attributes:
        places: In the order in which they are tried.
    """

    places: tuple[Endpoint, ...]

    def __str__(self) -> str:
        return " or ".join(str(place) for place in self.places)

    def open(self) -> Channel | None:
        """Open the first that is there; None if none is.

        Raises:
            OperatorError: If one is there, and cannot be used.
        """
        channels = (place.open() for place in self.places)
        return next((channel for channel in channels if channel is not None), None)


class Endpoint(Protocol):
    """A place where a host may be found."""

    def open(self) -> Channel | None:
        """Return a new channel; None if there is nothing to open now.

        Raises:
            OperatorError: If there is something, and it cannot be used.
        """

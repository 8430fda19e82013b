"""Unix stream sockets that carry file descriptors, without blocking and without guessing.

A descriptor belongs to the message whose first byte it came with. The kernel never lets one
`recvmsg` run past the bytes that descriptors arrived with, but it does glue messages *without*
descriptors in front of one that has some. So a reader asks for exactly the bytes of one header,
then for exactly its payload; `MessageSocket` does only that.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from ballast.streams.fds import FdSet
from ballast_protocol.errors import MalformedError, OperatorError, PeerError

MAX_FDS = 16
"""Descriptors that one message may carry; vhost-user allows 8, QEMU's vfio-user client 16."""

MAX_PENDING_BYTES = 1 << 16
"""Replies that the peer has not read yet; a peer that asks and never reads is cut off."""

_INT = struct.Struct("i")
_UCRED = struct.Struct("iII")


def receive(sock: socket.socket, size: int, fds: FdSet) -> bytes | None:
    """Return up to `size` bytes of a socket, adding descriptors that came with them to `fds`.

    Returns:
        The bytes; empty at the end of the stream; None when nothing is there yet.

    Raises:
        PeerError: The connection broke, or more descriptors came than any message may carry.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            size, socket.CMSG_SPACE(MAX_FDS * _INT.size), socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        raise PeerError(f"reading failed: {error}") from error
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT.size
            fds.extend(value for (value,) in _INT.iter_unpack(payload[:whole]))
    if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
        raise MalformedError(f"more than {MAX_FDS} file descriptors came with one message")
    return data


class MessageSocket:
    """One connected socket in an event loop: exact reads with descriptors, ordered writes.

    The `readable` callback is called when bytes or the end may be there; it calls `receive` until
    that returns None. `failed` is called when a delayed write finds the peer gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        readable: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._failed = failed
        self._outgoing = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, readable)

    def receive(self, size: int, fds: FdSet) -> bytes | None:
        """Return up to `size` bytes, adding descriptors that came with them to `fds`.

        Returns:
            The bytes; empty at the end of the stream; None when nothing is there yet.

        Raises:
            PeerError: The connection broke, or more descriptors came than any message may carry.
        """
        return receive(self._sock, size, fds)

    def has_input(self) -> bool:
        """Return whether bytes, or the end of the stream, are waiting to be read."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send everything, now or as soon as the peer reads.

        Args:
            data: The message.
            fds: Descriptors to go along with its first byte; they stay with the caller.

        Raises:
            PeerError: The peer is gone, or has left too many replies unread.
        """
        if not data:
            return
        if fds and self._outgoing:
            raise PeerError("replies were left unread, and the next one carries descriptors")
        if not self._outgoing:
            sent = self._send_now(data, fds)
            if fds and not sent:
                raise PeerError("replies were left unread, and the next one carries descriptors")
            data = data[sent:]
        if not data:
            return
        if not self._outgoing:
            self._loop.add_writer(self._sock, self._writable)
        self._outgoing += data
        if len(self._outgoing) > MAX_PENDING_BYTES:
            raise PeerError(f"{len(self._outgoing)} bytes of replies were left unread")

    def _send_now(self, data: bytes, fds: Sequence[int]) -> int:
        try:
            if fds:
                return socket.send_fds(self._sock, [data], list(fds), socket.MSG_NOSIGNAL)
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise PeerError(f"writing failed: {error}") from error

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._outgoing, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._loop.remove_writer(self._sock)
            self._failed(error)
            return
        del self._outgoing[:sent]
        if not self._outgoing:
            self._loop.remove_writer(self._sock)

    def unread_by_peer(self) -> int:
        """Return how many bytes that we sent the peer has not taken yet (`SIOCOUTQ`).

        On a Unix socket this counts the kernel's buffers, not exact bytes; 0 means all was taken.
        """
        (count,) = _INT.unpack(fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0" * _INT.size))
        return int(count)

    def close(self) -> None:
        """Leave the event loop and close; calling it again does nothing."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()


def peer_pid(sock: socket.socket) -> int | None:
    """Return the process at the other end of a connected Unix socket, if the kernel tells."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return None
    pid, _, _ = _UCRED.unpack(raw)
    return int(pid) or None


def listen(path: Path, *, mode: int = 0o600, backlog: int = 8) -> socket.socket:
    """Return a non-blocking socket that listens at `path`, taking the place of a dead one.

    Raises:
        OperatorError: Something that is not a dead socket is there, or the path cannot be used.
    """
    clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    old_mask = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise OperatorError(
            f"cannot listen at {path}: {error.strerror or error}",
            hint="The folder must exist and be writable, and the path shorter than 108 bytes.",
        ) from error
    finally:
        os.umask(old_mask)
    return sock


def clear_stale(path: Path) -> None:
    """Remove a socket file that nobody listens at.

    Raises:
        OperatorError: Somebody does, or the file is not a socket.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OperatorError(f"cannot look at {path}: {error.strerror}") from error
    if not is_socket:
        raise OperatorError(
            f"{path} exists and is not a socket", hint="Move it away, or choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise OperatorError(f"cannot use {path}: {error}") from error
    raise OperatorError(
        f"another process is listening at {path}",
        hint="Stop it first, or choose another path or VM name.",
    )

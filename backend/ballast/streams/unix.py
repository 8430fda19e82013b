"""Unix stream sockets that carry file descriptors, without blocking and without guessing.

A descriptor belongs to the message whose first byte it came with. The kernel never lets one
`recvmsg` run past the bytes that descriptors arrived with, but it does glue messages *without*
descriptors in front of one that has some. So what was read together with descriptors has to be
read again, in exactly the units that they may belong to.

What was looked at (`peek`) stays in the socket until it is consumed, descriptors included, and so
survives whoever looked. The socket itself remembers for a successor what became of the message at
its front: see `mark`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from ballast.streams import direct
from ballast.streams.fds import FdSet
from ballast.streams.outbox import Outbox
from ballast_protocol.errors import MalformedError, OperatorError, PeerError

MAX_FDS = 16
"""Descriptors that one message may carry; vhost-user allows 8, QEMU's vfio-user client 16."""

MAX_PENDING_BYTES = 1 << 16
"""Replies that the peer has not read yet; a peer that asks and never reads is cut off."""

_NO_ROOM_FOR_FDS = "replies were left unread, and the next one carries descriptors"

_SO_PEEK_OFF = 42
"""asm-generic/socket.h; Python has no name for it."""

_CLOEXEC, _PEEK = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_PEEK)
_TRUNCATED = int(socket.MSG_CTRUNC)
_INT = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * _INT.size)
_UCRED = struct.Struct("iII")


def receive(sock: socket.socket, size: int, fds: FdSet, flag: int = 0) -> bytes | None:
    """Return up to `size` bytes of a socket, adding descriptors that came with them to `fds`.

    Returns:
        The bytes; empty at the end of the stream; None when nothing is there yet.

    Raises:
        PeerError: The connection broke, or more descriptors came than any message may carry.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY_BYTES, _CLOEXEC | flag)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        raise PeerError(f"reading failed: {error}") from error
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT.size
            fds.extend(value for (value,) in _INT.iter_unpack(payload[:whole]))
    if flags & _TRUNCATED or len(fds) > MAX_FDS:
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
        failed: Callable[[PeerError], None],
        outbox: Outbox | None = None,
    ) -> None:
        """Take over a connected socket, and what a predecessor has yet to send over it."""
        sock.setblocking(False)
        self._sock = sock
        self._readable = readable
        self._failed = failed
        self._peek_at = sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
        self._is_writing = False
        self.outbox = outbox or Outbox()
        self._loop = asyncio.get_running_loop()
        direct.add_reader(self._loop, sock.fileno(), readable)

    @property
    def fd(self) -> int:
        """The socket's descriptor, which stays its own."""
        return self._sock.fileno()

    # Reading ---------------------------------------------------------------------------------

    def receive(self, size: int, fds: FdSet) -> bytes | None:
        """Return up to `size` bytes, adding descriptors that came with them to `fds`.

        Returns:
            The bytes; empty at the end of the stream; None when nothing is there yet.

        Raises:
            PeerError: The connection broke, or more descriptors came than any message may carry.
        """
        return receive(self._sock, size, fds)

    def peek(self, size: int, fds: FdSet, offset: int = 0) -> bytes | None:
        """As `receive`, from `offset` on, but everything stays in the socket.

        Descriptors are added anew each time that their bytes are looked at.
        """
        if offset and self._peek_at != offset:
            self.mark(offset)
        elif not offset:
            self.rewind()
        data = receive(self._sock, size, fds, _PEEK)
        if data and self._peek_at >= 0:
            self._peek_at += len(data)
        return data

    def rewind(self) -> None:
        """Look at the front again, and leave no trace of having looked."""
        if self._peek_at > 0:
            self.mark(0)

    def mark(self, value: int) -> None:
        """Have the socket remember a number, for a successor, until something is consumed.

        It is the position at which the kernel would look next (`SO_PEEK_OFF`, unix(7)). Consuming
        bytes takes as many off it in the same system call, so that a number smaller than what is
        consumed becomes 0: nobody can see the one without the other.
        """
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, value)
        self._peek_at = value

    @property
    def marked(self) -> int:
        """The number of `mark`, as a predecessor may have left it; 0 or less if there is none."""
        return self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)

    def consume(self, size: int) -> None:
        """Take bytes out that were looked at; their descriptors go with them.

        A message whose header came with descriptors and whose payload was sent apart takes two
        system calls: there alone, a kill can come between. QEMU sends each message at once.

        Raises:
            PeerError: The connection broke.
        """
        while size > 0:
            try:
                taken = len(self._sock.recv(size))
            except OSError as error:
                raise PeerError(f"reading failed: {error}") from error
            if not taken:
                raise PeerError("bytes that had come are gone")
            if self._peek_at > 0:
                self._peek_at = max(self._peek_at - taken, 0)
            size -= taken

    def is_ended(self) -> bool:
        """Return whether the peer will send no more, though bytes may be left to be read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def pause(self, is_paused: bool) -> None:
        """Stop telling that bytes are there, or tell again."""
        if is_paused:
            direct.remove_reader(self._loop, self._sock.fileno())
        else:
            direct.add_reader(self._loop, self._sock.fileno(), self._readable)

    def has_input(self) -> bool:
        """Return whether bytes, or the end of the stream, are waiting to be read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    # Writing ---------------------------------------------------------------------------------

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send everything, now or as soon as the peer reads.

        Args:
            data: The message.
            fds: Descriptors to go along with its first byte; they stay with the caller.

        Raises:
            PeerError: The peer is gone, or has left too many replies unread.
        """
        if data:
            if fds and self.outbox.pending:
                raise PeerError(_NO_ROOM_FOR_FDS)
            self.outbox.append(data)
            self.flush(fds)

    def flush(self, fds: Sequence[int] = ()) -> None:
        """Send what is in the outbox, now or as soon as the peer reads.

        Args:
            fds: Descriptors to go along with its first byte.

        Raises:
            PeerError: The peer is gone, or has left too many replies unread.
        """
        try:
            if fds:
                self._send_fds(fds)
            is_done = self.outbox.flush(self._sock.fileno())
        except OSError as error:
            raise PeerError(f"writing failed: {error}") from error
        if is_done == self._is_writing:
            self._is_writing = not is_done
            if is_done:
                self._loop.remove_writer(self._sock)
            else:
                self._loop.add_writer(self._sock, self._writable)
        if self.outbox.pending > MAX_PENDING_BYTES:
            raise PeerError(f"{self.outbox.pending} bytes of replies were left unread")

    def _send_fds(self, fds: Sequence[int]) -> None:
        """Send descriptors with the beginning of what waits; `sendfile` cannot carry any."""
        data = self.outbox.waiting()
        try:
            sent = socket.send_fds(self._sock, [data], list(fds), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            raise PeerError(_NO_ROOM_FOR_FDS) from None
        self.outbox.take(sent)

    def _writable(self) -> None:
        try:
            self.flush()
        except PeerError as error:
            self._loop.remove_writer(self._sock)
            self._failed(error)

    def unread_by_peer(self) -> int:
        """Return how many bytes that we sent the peer has not taken yet (`SIOCOUTQ`).

        On a Unix socket this counts the kernel's buffers, not exact bytes; 0 means all was taken.
        """
        (count,) = _INT.unpack(fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0" * _INT.size))
        return int(count)

    def close(self) -> None:
        """Leave the event loop and close; calling it again does nothing."""
        if self._sock.fileno() >= 0:
            direct.remove_reader(self._loop, self._sock.fileno())
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self.outbox.close()


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

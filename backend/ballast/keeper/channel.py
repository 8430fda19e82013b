"""One end of the socket between keeper and worker: whole messages with their descriptors."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Sequence

from ballast.keeper.messages import MAX_FDS, MAX_MESSAGE_BYTES, Message, decode

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)

_FULL = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EINTR)
"""What the kernel says when it takes no more for now; `ETOOMANYREFS` counts descriptors on the way
of all the user's processes."""


class ChannelClosedError(Exception):
    """The other end is gone, and everything that it sent has been read."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets for a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(sock: socket.socket, *, wait: bool = False) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors, which are the caller's.

    Args:
        sock: The socket.
        wait: Whether to wait for one.

    Returns:
        None if nothing is there.

    Raises:
        ChannelClosedError: The other end is gone.
    """
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, flags)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # It left without reading all that we sent. What it sent itself is still there.
            continue
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        break
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data and not fds:
        raise ChannelClosedError
    return decode(data), fds.tolist()


def send(sock: socket.socket, message: bytes, fds: Sequence[int], flags: int = 0) -> None:
    """Send a message with descriptors; `socket.send_fds` of some Pythons forgets the flags.

    Raises:
        OSError: The kernel does not take it.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([message], rights, flags | socket.MSG_NOSIGNAL)


class Outbox:
    """Sends without ever waiting: what the kernel does not take yet stays queued, in order.

    Bounded by its users: a worker is sent what is held, once, and a few words at a time after that.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[tuple[bytes, list[int]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message with duplicates of descriptors, now or at a later `flush`."""
        self._queue.append((message, [os.dup(fd) for fd in fds]))
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes; if the other end is gone, forget all of it."""
        while self._queue:
            message, fds = self._queue[0]
            try:
                send(self._sock, message, fds, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno in _FULL:
                    return
                self.clear()
                return
            self._pop()

    def _pop(self) -> None:
        for fd in self._queue.popleft()[1]:
            os.close(fd)

    def clear(self) -> None:
        """Forget what was not sent."""
        while self._queue:
            self._pop()

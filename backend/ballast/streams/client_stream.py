"""A stream to one client: bytes both ways, descriptors in, and a count of what it leaves unread."""

from __future__ import annotations

import asyncio
import socket

from ballast.streams.fds import FdSet
from ballast.streams.unix import receive
from ballast_protocol.errors import PeerError


class ClientStream:
    """One connected Unix socket in the event loop, which belongs to the stream from now on.

    Everything is to be called from one task, or from the event loop itself.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._is_readable = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_broken = False

    @property
    def unsent_bytes(self) -> int:
        """How much was written that the client has not read, kernel buffers not counted."""
        return len(self._unsent)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_broken or self._sock.fileno() < 0

    async def read(self, size: int, fds: FdSet) -> bytes:
        """Return up to `size` bytes as soon as there are any; empty at the end of the stream.

        Descriptors that came with them are added to `fds`.

        Raises:
            PeerError: The connection broke, or too many descriptors came at once.
        """
        while self._sock.fileno() >= 0:
            data = receive(self._sock, size, fds)
            if data is not None:
                return data
            await self._until_readable()
        return b""

    async def _until_readable(self) -> None:
        self._is_readable.clear()
        self._loop.add_reader(self._sock, self._is_readable.set)
        try:
            await self._is_readable.wait()
        finally:
            if self._sock.fileno() >= 0:
                self._loop.remove_reader(self._sock)

    def write(self, data: bytes) -> None:
        """Send data, now or as soon as the client reads; it is lost if the client has left."""
        if self.is_closed:
            return
        if not self._unsent:
            data = data[self._send(data) :]
            if data and not self._is_broken:
                self._loop.add_writer(self._sock, self._writable)
        self._unsent += data

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # Reading tells the rest: the stream ends, or breaks.
            self._is_broken = True
            return len(data)

    def _writable(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        self._has_room.set()
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    async def drain(self, most_bytes: int = 0) -> None:
        """Wait until the client has left no more than `most_bytes` unread.

        Raises:
            PeerError: It has left.
        """
        while self.unsent_bytes > most_bytes:
            self._has_room.clear()
            await self._has_room.wait()
        if self.is_closed:
            raise PeerError("the client has left")

    def end_reading(self) -> None:
        """Have `read` meet the end of the stream after what has arrived already."""
        if not self.is_closed:
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Leave the event loop and close; whoever waits for the client goes on."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._unsent.clear()
        self._is_readable.set()
        self._has_room.set()

"""Reads whole messages with their descriptors, for whichever protocol's connection cuts them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ballast.streams.fds import FdSet
from ballast.streams.unix import MessageSocket
from ballast_protocol.errors import PeerError

MESSAGES_PER_TURN = 64
"""Messages served before other VMs of the same process get their turn."""

Arrived = TypeVar("Arrived")
_Arrived_co = TypeVar("_Arrived_co", covariant=True)


class Connection(Protocol[_Arrived_co]):
    """A protocol's state machine, which says how many bytes it wants next."""

    @property
    def bytes_wanted(self) -> int:
        """How many bytes to read next: a header, or the payload of the one that has come."""

    @property
    def mid_message(self) -> bool:
        """Whether a payload is still to come."""

    def receive(self, data: bytes, fd_count: int = 0) -> _Arrived_co | None:
        """Take in the bytes wanted; return what is to be served, or None if a payload follows."""


class MessageReader(Generic[Arrived]):
    """Feeds a connection from its socket, and has what arrives served one by one.

    Attributes:
        socket: Where replies go.
        fds: The descriptors of the message that is being read or served.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection[Arrived],
        *,
        serve: Callable[[Arrived], None],
        ended: Callable[[str], None],
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            connection: What cuts it into messages.
            serve: Given each; a `PeerError` of its ends the connection.
            ended: Told why the connection cannot go on; empty if the peer just left.
        """
        self._connection = connection
        self._serve = serve
        self._ended = ended
        self._buffer = bytearray()
        self._fds_before = 0
        self._is_closed = False
        self.fds = FdSet()
        self.socket = MessageSocket(sock, self.read, lambda error: ended(str(error)))

    @property
    def is_mid_message(self) -> bool:
        """Whether a part of a message has come, and the rest has not."""
        return bool(self._buffer) or self._connection.mid_message

    def read(self) -> None:
        """Serve what has arrived, for a bounded number of messages."""
        for _ in range(MESSAGES_PER_TURN):
            if self._is_closed or not self._step():
                return

    def _step(self) -> bool:
        """Read the next part of a message and serve it when whole; return whether to go on."""
        try:
            wanted = self._connection.bytes_wanted - len(self._buffer)
            if not self._buffer:
                self._fds_before = len(self.fds)
            data = self.socket.receive(wanted, self.fds)
            if data is None:
                return False
            if not data:
                self._ended("in mid-message" if self.is_mid_message else "")
                return False
            self._buffer += data
            if len(data) == wanted:
                unit, self._buffer = bytes(self._buffer), bytearray()
                arrived = self._connection.receive(unit, len(self.fds) - self._fds_before)
                if arrived is not None:
                    self._serve(arrived)
        except PeerError as error:
            self._ended(str(error))
            return False
        return True

    def close(self) -> None:
        """Read no more; close the socket and what nobody took."""
        self._is_closed = True
        self.fds.close()
        self.socket.close()

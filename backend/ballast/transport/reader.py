"""Reads whole messages with their descriptors, for whichever protocol's connection cuts them.

Every message is served exactly once, though the process may be killed at any moment and another
one goes on with the same socket:

1. A message is looked at and stays in the socket. Serving it changes only what can be changed again
   in the same way by whoever finds it there; its reply goes to the outbox and is not sent.
2. The socket is marked with the message's parity.
3. The session saves its state, this message's number (`Position`) and the reply's end in it, as a
   whole. From here on the message counts as served.
4. The reply is sent, and the outbox knows how far. The message is consumed, which removes the mark
   in the same system call.
5. What others see of the message is done: descriptors are dropped, rings are served.

A successor that finds the mark of the message that was saved consumes it and sends the rest of the
reply; one that finds another mark or none serves what is at the front.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ballast.streams.fds import FdSet
from ballast.streams.outbox import Outbox
from ballast.streams.unix import MAX_FDS, MessageSocket
from ballast_protocol.errors import MalformedError, PeerError

MESSAGES_PER_TURN = 64
"""Messages served before other VMs of the same process get their turn."""

WINDOW_BYTES = 512
"""Looked at at once: nearly every message that carries no descriptor is shorter."""

PART_SECONDS = 0.002
"""How long to wait for the rest of a message that has come in part. QEMU sends each at once."""

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

    def recall(self, message: bytes) -> _Arrived_co | None:
        """Take in exactly one message without descriptors, if its kind comes all the time.

        Returns None, and has taken in nothing, if what is there has to be received.
        """


@dataclass
class Position:
    """Which messages of a connection have been served; part of what a session saves.

    Attributes:
        parity: 1 or 2 in turn, message by message; 0 before the first.
        size_bytes: The length of the last one.
        replied_bytes: How far the outbox is filled with replies.
    """

    parity: int = 0
    size_bytes: int = 0
    replied_bytes: int = 0


class MessageReader(Generic[Arrived]):
    """Feeds a connection from its socket, and has what arrives served one by one.

    Attributes:
        socket: Where replies go.
        fds: The descriptors of the message that is being read or served.
        position: Up to where messages have been served, to be saved by `save`.
        is_serving: A message is being served, and will be saved when that is done.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection[Arrived],
        *,
        measure: Callable[[bytes], int],
        serve: Callable[[Arrived], None],
        ended: Callable[[str], None],
        save: Callable[[], None] | None = None,
        saved: Callable[[], None] = lambda: None,
        position: Position | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            connection: What cuts it into messages.
            measure: Says how long a message claims to be, by its header.
            serve: Given each; a `PeerError` of its ends the connection.
            ended: Told why the connection cannot go on; empty if the peer just left.
            save: Called when a message has been served: saves `position` with everything else. None
                if nobody will take over.
            saved: Called afterwards, when the reply is on its way.
            position: What a predecessor saved; call `recover` then, before anything else.
            outbox: What a predecessor was sending.
        """
        self._connection = connection
        self._serve = serve
        self._ended = ended
        self._save, self._saved = save, saved
        self._measure = measure
        self._head_bytes = self._size = 0
        self._window, self._has_more = b"", False
        self._reply_fds: tuple[int, ...] = ()
        self._is_closed = False
        self._pause: asyncio.TimerHandle | None = None
        self.is_serving = False
        self.is_mid_message = False
        self.position = position or Position()
        self.fds, self._passing = FdSet(), FdSet()
        self.socket = MessageSocket(sock, self.read, lambda error: ended(str(error)), outbox)

    def recover(self) -> None:
        """Finish the message that a predecessor had served, and send what it owed.

        Raises:
            PeerError: The connection has broken meanwhile.
        """
        if self.position.parity and self.socket.marked == self.position.parity:
            self.socket.consume(self.position.size_bytes)
        self.socket.mark(0)
        self.socket.flush()

    # Reading ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Serve what has arrived, for a bounded number of messages."""
        for _ in range(MESSAGES_PER_TURN):
            if self._is_closed or not self._step():
                return

    def _step(self) -> bool:
        """Serve the message at the front, if it is whole; return whether to go on."""
        try:
            arrived = self._look()
            if arrived is None:
                return False
            self.position.size_bytes = self._size
            self.is_serving = True
            try:
                self._serve(arrived)
            finally:
                self.is_serving = False
            if not self._is_closed:
                self._finish()
        except PeerError as error:
            self._ended(str(error))
            return False
        # If more has come since, the loop will tell; to look costs as much as a message.
        return self._has_more

    def _look(self) -> Arrived | None:
        """Return what has arrived when all of it is there; the bytes stay in the socket."""
        arrived: Arrived | None = None
        if not self._connection.mid_message:
            arrived = self._look_at_header()
        if arrived is None and self._connection.mid_message:
            arrived = self._look_at_payload()
        if arrived is not None:
            self.is_mid_message = False
        elif not self._is_closed:
            self.socket.rewind()
        return arrived

    def _look_at_header(self) -> Arrived | None:
        """Take in the header at the front, if it is there, with its descriptors.

        Takes in the whole message if it is one that comes all the time, and nothing follows it yet.
        """
        head, window = self._connection.bytes_wanted, b""
        with self._passing as last:
            while len(window) < head:
                if window:
                    self._keep(last)
                part = self.socket.peek(WINDOW_BYTES, last, len(window))
                if not part:
                    self._stop_short(part, window)
                    return None
                window += part
            if not last and not self.fds:
                arrived = self._connection.recall(window)
                if arrived is not None:
                    self._size, self._has_more = len(window), False
                    return arrived
            self._head_bytes, self._size = head, self._measure(window[:head])
            # The kernel stops after the bytes that descriptors came with, but not before them.
            is_ours = len(window) <= self._size
            if is_ours and len(last):
                self._keep(last)
        self._window = b"" if is_ours and self.fds else window
        self._has_more = len(window) != self._size
        return self._connection.receive(window[:head], len(self.fds))

    def _keep(self, found: FdSet) -> None:
        self.fds.extend(found.take_all())
        if len(self.fds) > MAX_FDS:
            raise MalformedError(f"more than {MAX_FDS} file descriptors came with one header")

    def _stop_short(self, part: bytes | None, window: bytes) -> None:
        """There is no whole header: there is nothing, or a part of one, or the end."""
        self.fds.close()
        if window:
            self._wait()
        elif part is not None:
            self._ended("")

    def _look_at_payload(self) -> Arrived | None:
        """Take in the payload of the message at the front, if all of it is there."""
        head, size = self._head_bytes, self._head_bytes + self._connection.bytes_wanted
        window, self._window = self._window, b""
        if len(window) >= size and not self.fds:
            return self._connection.receive(window[head:size])
        message, found = b"", 0
        while len(message) < size:
            missing = size - len(message)
            with FdSet() as again:
                # One byte more, to see whether descriptors that are met belong to what follows.
                part = self.socket.peek(missing + 1, again, len(message))
                if not part:
                    self._wait()
                    return None
                if len(part) <= missing:
                    found += len(again)
            message += part[:missing]
        # Those that were counted with the header have come once more.
        return self._connection.receive(message[head:], found - len(self.fds))

    def _wait(self) -> None:
        """A part of a message is there: look again in a while, or end with the stream."""
        self.is_mid_message = True
        if self.socket.is_ended():
            self._ended("in mid-message")
        elif self._pause is None:
            # What is left in the socket would make the loop turn without end.
            self.socket.pause(True)
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(PART_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._pause = None
        self.socket.pause(False)
        self.read()

    # Answering -------------------------------------------------------------------------------

    def reply(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Answer the message that is being served; it goes out when that has been saved.

        Args:
            data: The reply, or nothing.
            fds: Descriptors to go along; they stay with the caller, open until then. A kill in the
                instant after they were sent has the successor send them again.

        Raises:
            PeerError: Replies were left unread, so that no descriptors can be sent.
        """
        if fds and self.socket.outbox.pending:
            raise PeerError("replies were left unread, and the next one carries descriptors")
        self._reply_fds = tuple(fds)
        self.socket.outbox.append(data)

    def _finish(self) -> None:
        """Make the message count as served, take it out, and send its reply."""
        position = self.position
        position.replied_bytes = self.socket.outbox.end
        if self._save is not None:
            position.parity = 2 if position.parity == 1 else 1
            self.socket.mark(position.parity)
            self._save()
        # The peer waits for the reply, nobody for the end of the request.
        fds, self._reply_fds = self._reply_fds, ()
        self.socket.flush(fds)
        self.socket.consume(position.size_bytes)
        self._saved()

    def close(self) -> None:
        """Read no more; close the socket and what nobody took."""
        self._is_closed = True
        if self._pause is not None:
            self._pause.cancel()
        self.fds.close()
        self.socket.close()

"""What the agent tells the host about blocks, and what it makes of the answers. No I/O, no clock.

A session begins with a welcome: the holdings are told, and nothing is reported until the host has
said which of them it knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Protocol

from ballast_agent.blocks.book import Book, Flight, Standing
from ballast_protocol.guest_blocks import (
    MAX_RANGES,
    BlockMessage,
    BlocksAck,
    BlocksReleased,
    BlocksReport,
    Holding,
    HoldingAck,
    Purpose,
)
from ballast_protocol.guest_framing import MAX_REQUEST_ID

log = logging.getLogger(__name__)

Send = Callable[[BlockMessage, int], None]
"""Sends a message under a request id; zero if nobody asked and no answer is expected."""


class Checks(Protocol):
    """Looks at blocks once more before they are reported."""

    def __call__(self, pfns: tuple[int, ...]) -> bool:
        """Tell whether all of these are isolated at this moment, beyond anybody's reach."""


class Reporter:
    """Keeps book of the blocks together with the host.

    Attributes:
        book: Where every block stands.
        session: The session's number; None outside one.
    """

    def __init__(self, send: Send, first_id: int = 1) -> None:
        """Begin outside a session.

        Args:
            send: Sends a message.
            first_id: Request id of the first message that wants an answer.
        """
        self.book = Book()
        self.session: int | None = None
        self._is_suspended = False
        self._later: list[tuple[BlockMessage, int]] = []
        self._send = send
        self._id = first_id

    @property
    def is_ready(self) -> bool:
        """Whether reports may be sent."""
        return self.session is not None and not self.book.is_asking

    def begin(self, session: int | None) -> None:
        """The newest hello was welcomed: tell what is held."""
        self.book.trust()
        self.session = session
        later, self._later = self._later, []
        self._is_suspended = False
        if session is None:
            return
        for message, request_id in later:
            self._send(message, request_id)
        parts = self.book.holdings()
        requests = [(self._next_id(), part) for part in parts]
        for request_id, part in requests:
            self.book.ask(request_id, part)
        for request_id, part in requests:
            self._send(Holding(session, part, part is parts[-1]), request_id)

    def suspend(self) -> None:
        """A new hello is on its way: nothing that comes before its welcome counts."""
        self.session = None
        self._is_suspended = True
        self.book.lose_sight()

    def end(self, now: float) -> None:
        """The connection is gone."""
        self.session = None
        self._is_suspended = False
        self._later.clear()
        self.book.connection_ended(now)

    def report(self, purpose: Purpose, is_isolated: Checks) -> int:
        """Send as many reports as may be under way; return the bytes in them."""
        sent = 0
        while self.session is not None and self.is_ready and self.book.has_room:
            pfns = self.book.next_report()
            if pfns and not is_isolated(pfns):
                # That has put the book in order, if anything can.
                pfns = self.book.next_report()
                pfns = pfns if pfns and is_isolated(pfns) else ()
            if not pfns:
                break
            request_id, flight = self._next_id(), Flight(pfns, purpose)
            self.book.depart(request_id, flight)
            ranges = self.book.ranges(pfns)
            self._send(BlocksReport(self.session, purpose, ranges), request_id)
            sent += flight.size_bytes
        return sent

    def tell(self, message: BlockMessage, request_id: int = 0) -> None:
        """Send a message now, or when the session that a hello has asked for begins."""
        if self.session is not None:
            self._send(message, request_id)
        elif self._is_suspended and request_id:
            self._later.append((message, request_id))

    def acknowledged(self, ack: BlocksAck, request_id: int) -> Flight | None:
        """Take an acknowledgement; return the report, None if it is none of this session."""
        if ack.session != self.session:
            return None
        return self.book.land(request_id, ack.refused)

    def refused(self, request_id: int) -> Flight | None:
        """Take a refusal of a whole report; return it, None if no such report is under way."""
        flight = self.book.land(request_id)
        if flight is not None:
            self.book.renew(flight.pfns)
        # A host that does not understand the holdings knows none of them.
        self.book.settle(request_id, ())
        return flight

    def knows(self, message: HoldingAck, request_id: int) -> None:
        """Take the answer to a part of the holdings."""
        if message.session != self.session:
            return
        self.book.settle(request_id, message.known)
        if not self.book.is_asking:
            held, new = self.book.count(Standing.HELD), self.book.count(Standing.NEW)
            log.info("the host knows %d of the %d blocks that are isolated", held, held + new)

    def released(self, pfns: Collection[int]) -> None:
        """Strike out blocks that the guest has again, and tell the host."""
        ranges = self.book.ranges(pfns)
        self.book.remove(pfns)
        if self.session is not None:
            for start in range(0, len(ranges), MAX_RANGES):
                self._send(BlocksReleased(self.session, ranges[start : start + MAX_RANGES]), 0)

    def _next_id(self) -> int:
        self._id = self._id % MAX_REQUEST_ID + 1
        return self._id

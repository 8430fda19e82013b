"""The host's side of the trade in blocks: sessions, reports, releases. No I/O, no clock.

`ballast_protocol.guest_blocks` says what both ends promise. The host's part of it:

* Every welcome begins a session with a number that no other has, so what was meant for a daemon or
  a session of before is told apart and refused, and nothing of it is ever discarded.
* A session is *open* when the agent has said what it holds. Before that no report is accepted.
* A report is dealt with, the discard included, before anything that came after it is looked at.
* When a session ends nothing more of it is dealt with, not even what has been read already.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from ballast.balloon.blocks import BlockBook
from ballast_protocol.guest import (
    ABILITY_BLOCKS,
    BLOCKS_VERSION,
    ErrorReply,
    Hello,
    Message,
    MessageKind,
)
from ballast_protocol.guest_blocks import (
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Holding,
    HoldingAck,
    NodeGoal,
    SetSweeps,
    SweepDone,
)

AgentBlockMessage = BlocksReport | BlocksReleased | Holding | BlocksStatus | SweepDone
"""What an agent says about blocks without being asked."""

Send = Callable[[Message, int], None]

_SESSION_BITS = 48
"""Of a first session's random number; with so many none is met twice."""


@dataclass
class SessionCounters:
    """What has happened to the agent's sessions since the daemon started.

    Attributes:
        sessions: How many were begun.
        stale_messages: Reports and holdings that were meant for another session, or came before the
            agent had said what it holds; nothing of them was discarded.
        pressure_releases: How often the agent gave blocks back because the guest needed memory.
    """

    sessions: int = 0
    stale_messages: int = 0
    pressure_releases: int = 0


class BlockSession:
    """What goes on between one VM's daemon and the agent in its guest, as far as blocks go.

    Attributes:
        book: The blocks that the agent has taken.
        number: The session's; None while there is none.
        is_open: The agent has said what it holds.
        status: What it last said of itself in this session; None if nothing yet.
        last_sweep: The last sweep that ended; None if none has.
        counters: For the metrics.
        boot_id: Which life of the guest the book is about; empty if no agent has said.
    """

    def __init__(self, book: BlockBook, send: Send, changed: Callable[[], None]) -> None:
        """Begin without a session.

        Args:
            book: The blocks that the agent has taken.
            send: Sends a message to the agent under a request id.
            changed: Called when the book or what is known of the agent has changed.
        """
        self.book = book
        self.number: int | None = None
        self.is_open = False
        self.status: BlocksStatus | None = None
        self.last_sweep: SweepDone | None = None
        self.counters = SessionCounters()
        self.boot_id = ""
        self._discarded_bytes = 0
        self._send = send
        self._changed = changed
        self._next_number = secrets.randbits(_SESSION_BITS)
        self._has_released_since = False
        self._goals: tuple[NodeGoal, ...] = ()
        self._sweeps: SetSweeps | None = None

    # Life ------------------------------------------------------------------------------------

    def begin(self, hello: Hello, version: int) -> int | None:
        """Begin the session of an agent that introduced itself; return its number for the welcome.

        Returns:
            None if this agent does not trade in blocks.
        """
        self.end()
        if self.boot_id != hello.boot_id:
            # A guest that has started anew uses all of its memory.
            self.boot_id = hello.boot_id
            self.book.clear()
        if version < BLOCKS_VERSION or ABILITY_BLOCKS not in hello.abilities:
            return None
        if hello.hello_id is None:
            return None
        self._next_number += 1
        self.number = self._next_number
        self.counters.sessions += 1
        self.book.begin_session()
        return self.number

    def end(self) -> None:
        """The session is over: nothing that is meant for it is believed any more."""
        self.number = None
        self.is_open = False
        self.status = None

    # What the host wants ---------------------------------------------------------------------

    def set_goals(self, goals: tuple[NodeGoal, ...]) -> None:
        """Have the agent hold this much, now and in sessions to come."""
        if goals != self._goals:
            self._goals = goals
            if self.is_open:
                self._send(BlocksGoal(goals), 0)

    @property
    def goal_bytes(self) -> int:
        """What the agent is to hold."""
        return sum(goal.size_bytes for goal in self._goals)

    def set_sweeps(self, sweeps: SetSweeps) -> None:
        """Have the agent sweep without being asked, now and in sessions to come.

        As long as this is never called, the guest's administrator decides.
        """
        self._sweeps = sweeps
        if self.is_open:
            self._send(sweeps, 0)

    @property
    def has_settled(self) -> bool:
        """Whether the agent has stopped trying to reach the present goal."""
        status = self.status
        if status is None or self._has_released_since:
            return False
        return status.settled and status.goal_bytes == self.goal_bytes

    def account(self) -> int:
        """Return how much reports have given back since the last call, in bytes."""
        discarded, self._discarded_bytes = self._discarded_bytes, 0
        return discarded

    # What the agent says ---------------------------------------------------------------------

    def take(self, message: AgentBlockMessage, request_id: int) -> None:
        """Deal with a message of the agent's."""
        match message:
            case BlocksReport():
                self._take_report(message, request_id)
            case BlocksReleased():
                self._take_release(message)
            case Holding():
                self._take_holding(message, request_id)
            case BlocksStatus():
                self._take_status(message)
            case SweepDone():
                self._take_sweep_done(message)

    def _take_report(self, report: BlocksReport, request_id: int) -> None:
        if not self._is_current(report.session) or not self.is_open:
            self._refuse(MessageKind.BLOCKS_REPORT, request_id)
            return
        verdict = self.book.report(report.ranges, report.purpose)
        self._discarded_bytes += verdict.accepted_bytes
        ack = BlocksAck(report.session, verdict.refused, verdict.freed_bytes)
        self._send(ack, request_id)
        self._changed()

    def _take_release(self, released: BlocksReleased) -> None:
        """Strike out what the guest has again, whatever session it was said in.

        That is safe: to strike out a block never discards one.
        """
        if self.book.release(released.ranges):
            # What it said before no longer describes it; why it did this it says next.
            self._has_released_since = True
            self._changed()

    def _take_holding(self, holding: Holding, request_id: int) -> None:
        if not self._is_current(holding.session) or self.is_open:
            self._refuse(MessageKind.HOLDING, request_id)
            return
        known = self.book.confirm(holding.ranges, is_last=holding.last)
        self._send(HoldingAck(holding.session, known), request_id)
        if holding.last:
            self.is_open = True
            if self._sweeps is not None:
                self._send(self._sweeps, 0)
            self._send(BlocksGoal(self._goals), 0)
            self._changed()

    def _take_sweep_done(self, done: SweepDone) -> None:
        self.last_sweep = done
        # One that could not begin, because another goes on, has reported nothing.
        if self.is_open and done.reported_bytes:
            self.book.sweep_ended()
            self._changed()

    def _take_status(self, status: BlocksStatus) -> None:
        if self.number is None:
            return
        before = self.status.counters.pressure_releases if self.status else None
        self.status = status
        self._has_released_since = False
        if before is not None and status.counters.pressure_releases > before:
            self.counters.pressure_releases += status.counters.pressure_releases - before
        self._changed()

    def _is_current(self, session: int) -> bool:
        return self.number is not None and session == self.number

    def _refuse(self, kind: MessageKind, request_id: int) -> None:
        """Answer what belongs to no open session; it is no fault of the guest's."""
        self.counters.stale_messages += 1
        self._send(ErrorReply(kind, "this session is over, or has not begun"), request_id)

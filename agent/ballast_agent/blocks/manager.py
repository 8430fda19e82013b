"""Decides what happens to blocks next: goals, sweeps, pressure, and what stands in their way.

Everything happens in `tick` and in the methods that take a message; time is passed in. A step that
takes blocks is followed by their reports, and only when all of those are answered by the next step,
so that nothing but reserved pages is in the pool while a report is under way.
"""

from __future__ import annotations

import logging

from ballast_agent.blocks.background import Background
from ballast_agent.blocks.book import Standing
from ballast_agent.blocks.compaction import Compaction
from ballast_agent.blocks.guard import Guard
from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.limits import Limits
from ballast_agent.blocks.options import BlockOptions
from ballast_agent.blocks.plan import goal_blocks
from ballast_agent.blocks.pool import Pool
from ballast_agent.blocks.reclaim import Reclaimer
from ballast_agent.blocks.reporter import Reporter, Send
from ballast_agent.blocks.status import Counts, node_blocks
from ballast_agent.blocks.sweeper import Sweeper
from ballast_agent.blocks.sweeps import SweepRun
from ballast_agent.blocks.taker import Goal, Taker
from ballast_agent.blocks.trouble import TROUBLE_SECONDS, Trouble
from ballast_agent.text import human_bytes
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    BlockCounters,
    BlockMessage,
    BlocksAck,
    BlocksGoal,
    BlocksStatus,
    Compact,
    HoldingAck,
    Purpose,
    SetSweeps,
    Sweep,
)

NEEDED = "the guest needs its memory"
RETRY_SECONDS = 1.0
"""How soon to try again what did not work, or did not go on."""

log = logging.getLogger(__name__)


class BlockManager:
    """All that the agent does with blocks."""

    def __init__(
        self,
        kernel: Kernel,
        send: Send,
        background: Background,
        options: BlockOptions | None = None,
        first_id: int = 1,
    ) -> None:
        """Take nothing yet; `start` finds what a predecessor left.

        Args:
            kernel: The guest.
            send: Sends a message to the host.
            background: Where compaction goes on.
            options: What the administrator wants.
            first_id: Request id of the first message that wants an answer.

        Raises:
            OperatorError: If the kernel does not tell how much memory there is.
        """
        self._options = options or BlockOptions()
        self._kernel = kernel
        self._counts = counts = Counts()
        self._limits = Limits.of(kernel.meminfo().get("MemTotal", 0), self._options.reserve_bytes)
        self._guard = Guard(kernel, self._limits, counts)
        self._compaction = Compaction(kernel, background)
        self._pool = Pool(kernel)
        self._reporter = Reporter(send, first_id)
        self._book = self._reporter.book
        self._taker = Taker(kernel, self._pool, self._book, self._limits, self._compaction, counts)
        self._sweeper = Sweeper(kernel, self._options.sweeps, counts)
        self._goal = Goal()
        self._reclaimer = Reclaimer(kernel, background, counts) if self._options.reclaim else None
        self._stopping = self._changed = False
        self._trouble = Trouble(enabled=self._options.enabled)
        self._report_at = 0.0
        self._next: float | None = None

    def start(self, now: float) -> None:
        """Find the blocks that a predecessor left."""
        self._sweeper.start(now)
        try:
            self._pool.recover()
        except OperatorError as error:
            self._be_troubled(error, now)
        if not self.is_empty:
            log.info("found %d blocks that another agent has left", len(self._pool.blocks))
            self._book.add(self._pool.blocks, Standing.DOUBTFUL)
            self._book.doubt(now)
            self._goal = Goal(self._book.per_node())
        self._next = now

    # What happens on the channel

    def connected(self, now: float) -> None:
        """There is a host on the channel."""
        self._book.connection_began(now)

    def disconnected(self, now: float) -> None:
        """The host is gone: what is held stays held, and is watched."""
        self._reporter.end(now)
        self._freeze()
        self.tick(now)

    def introduced(self) -> None:
        """A new hello is on its way to the host."""
        self._reporter.suspend()

    def welcomed(self, session: int | None, now: float) -> None:
        """The newest hello was welcomed.

        Args:
            session: The session that begins; None from a host that wants no blocks.
            now: The time.
        """
        self._freeze()
        if session is None:
            self._goal = Goal()
        # What was refused before may have been refused because that session was over.
        self._report_at = now
        self._reporter.begin(session)
        self._changed = True
        self.tick(now)

    def receive(self, message: BlockMessage, request_id: int, now: float) -> bool:
        """Take a message from the host; tell whether it is one that an agent gets."""
        if isinstance(message, BlocksAck):
            self._take_ack(message, request_id, now)
        elif isinstance(message, HoldingAck):
            self._reporter.knows(message, request_id)
        elif isinstance(message, BlocksGoal):
            self._take_goal(message, request_id)
        elif isinstance(message, Sweep):
            self._begin_sweep(request_id, message.node, now)
        elif isinstance(message, SetSweeps):
            self._sweeper.set(message, now)
        elif isinstance(message, Compact):
            self._compaction.run(message.node, lambda done: self._reporter.tell(done, request_id))
        else:
            return False
        self.tick(now)
        return True

    def refused(self, request_id: int, reason: str, now: float) -> None:
        """The host has refused a message."""
        if (flight := self._reporter.refused(request_id)) is not None:
            self._be_refused(len(flight.pfns), reason, now)
        self.tick(now)

    def send_status(self, now: float, request_id: int = 0) -> None:
        """Tell the host where the agent stands."""
        try:
            self._reporter.tell(self._status(now), request_id)
        except OperatorError as error:
            log.error("no status: %s", error)

    # What happens in the guest

    def stalled(self, now: float) -> None:
        """Tasks in the guest wait for memory: PSI has raised its alarm."""
        self._guard.stall()
        self.tick(now)

    def stop(self, now: float) -> None:
        """Give everything back, as soon as the host has answered what is under way."""
        self._stopping = True
        self._sweeper.end("the agent stops")
        self.tick(now)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is isolated."""
        return self._pool.is_empty

    def deadline(self) -> float | None:
        """Return when `tick` is due; None if nothing is."""
        return self._next

    def tick(self, now: float) -> None:
        """Do what can be done now, a bounded step of it."""
        try:
            again = self._step(now)
        except OperatorError as error:
            self._be_troubled(error, now)
            again = False
        self._update_book()
        self._answer_goal(now)
        if self._changed:
            self._changed = False
            self.send_status(now)
        self._next = now if again else self._next_deadline(now)

    def _step(self, now: float) -> bool:
        """Do one step; tell whether another one can follow at once."""
        if self.is_empty and self._trouble.look(now):
            self._changed = True
        if self._guard.watch(len(self._pool.blocks), now, sweeping=self._sweeper.run is not None):
            self._give_up(NEEDED, now, self._guard.pressure.ends)
        if self._reclaimer is not None and not self._guard.pressure.is_on(now):
            self._reclaimer.look(now)
        self._report(now)
        if not self._book.may_release(now):
            self._guard.wait()
            return False
        self._release()
        return self._advance(now)

    def _next_deadline(self, now: float) -> float | None:
        times = [self._book.doubt_ends, self._guard.pressure.ends]
        if self._reclaimer is not None:
            times.append(self._reclaimer.deadline())
        if not self.is_empty:
            times.append(self._guard.deadline(now))
        if self._trouble.ends is not None:
            times.append(self._trouble.ends if self.is_empty else now + RETRY_SECONDS)
        if self._reporter.is_ready:
            times.append(self._sweeper.deadline())
            if self._is_short or self._sweeper.run is not None:
                # Whatever it waits for may not come.
                times += [self._goal.retry_at, now + RETRY_SECONDS]
            if self._book.count(Standing.NEW):
                times.append(self._report_at)
        return min((time for time in times if time is not None and time > now), default=None)

    # Reports

    def _report(self, now: float) -> None:
        """Report what is isolated and not yet reported."""
        may_not = self._guard.owed or self._trouble.reason or self._stopping
        if not may_not and now >= self._report_at:
            purpose = Purpose.HOLD if self._sweeper.run is None else Purpose.SWEEP
            self._counts.reported_bytes += self._reporter.report(purpose, self._is_isolated)

    def _is_isolated(self, pfns: tuple[int, ...]) -> bool:
        """Look once more before blocks are reported.

        Raises:
            OperatorError: If pages of the pool are within somebody else's reach.
        """
        if self._pool.is_whole() and not self._pool.not_isolated(pfns):
            return True
        is_ours = self._pool.look_again()
        lost = len(self._book.without(self._pool.blocks))
        if lost:
            log.warning("%d blocks are not isolated any more, by the kernel's own doing", lost)
            self._counts.lost_blocks += lost
        self._update_book()
        if not is_ours:
            raise OperatorError("somebody else in this guest has begun to use huge pages")
        return False

    def _take_ack(self, ack: BlocksAck, request_id: int, now: float) -> None:
        if (flight := self._reporter.acknowledged(ack, request_id)) is None:
            return
        refused = sum(span.size_bytes for span in ack.refused)
        landed, freed = max(0, flight.size_bytes - refused), ack.freed_bytes or 0
        self._counts.acknowledged_bytes += landed
        self._counts.freed_bytes += freed
        self._sweeper.landed(landed, freed)
        if refused:
            self._be_refused(refused // BLOCK_BYTES, "it wants none of these", now)

    def _be_refused(self, blocks: int, reason: str, now: float) -> None:
        """The host did not take blocks: they go back, and nothing is tried for a while."""
        log.warning("the host refused %d blocks: %s", blocks, reason)
        self._report_at = now + TROUBLE_SECONDS
        self._guard.owed += blocks
        self._give_up("the host refused blocks", now, self._report_at)

    # Giving back

    def _be_troubled(self, error: OperatorError, now: float) -> None:
        """Something is wrong: give back what is ours, and try again later."""
        self._trouble.begin(error, now)
        self._give_up(str(error), now, self._trouble.ends)

    def _give_up(self, reason: str, now: float, until: float | None) -> None:
        self._sweeper.end(reason)
        self._goal.fall_short(reason, now, until)
        self._changed = True

    def _release(self) -> None:
        """Give back what is not to be kept. No report is under way."""
        counts = held = self._book.per_node()
        if not (self._trouble.reason or self._stopping):
            counts = self._guard.beyond(self._goal, held, sweeping=self._sweeper.run is not None)
        if counts or (not self._book and not self.is_empty):
            before = len(self._pool.blocks)
            self._pool.give_back(counts)
            gone = (before - len(self._pool.blocks)) * BLOCK_BYTES
            self._update_book()
            self._counts.released_bytes += gone
            self._changed = True
            log.info("the guest has %s back", human_bytes(gone))
        self._guard.settle()

    def _update_book(self) -> None:
        """Strike out blocks that are isolated no more, tell the host, and enter new ones."""
        gone = self._book.without(self._pool.blocks)
        if gone:
            self._reporter.released(gone)
        self._book.add_unknown(self._pool.blocks)

    # Taking

    def _advance(self, now: float) -> bool:
        """Take the next step of the sweep or towards the goal; tell whether more can follow."""
        run = self._sweeper.run
        if run is not None and self._sweeper.is_ending:
            self._finish_sweep(run, now)
            return True
        if self._guard.pressure.is_on(now) and self._goal.short_reason is None:
            self._goal.fall_short(NEEDED, now, self._guard.pressure.ends)
        may_take = not (self._trouble.reason or self._stopping or self._guard.pressure.is_on(now))
        if not may_take or not self._reporter.is_ready or self._book.count(Standing.NEW):
            return False
        self._sweeper.look(now)
        if self._sweeper.run is not None:
            self._taker.sweep(self._sweeper.run)
        elif not self._is_short or not self._taker.toward(self._goal, now):
            return False
        self._update_book()
        self._report(now)
        # An answer to a report is what goes on from here; without one nothing would.
        return not self._book.is_waiting

    # Goals

    def _freeze(self) -> None:
        """Stop pursuing the goal of a session that is over, without giving anything back."""
        self._sweeper.end("the host is gone")
        if self._sweeper.run is None:
            self._goal = Goal(self._book.per_node())

    def _take_goal(self, message: BlocksGoal, request_id: int) -> None:
        self._goal = Goal(goal_blocks(message), request_id, is_answered=False)
        self._sweeper.end("a new goal came")
        log.info("the host wants %s to be held", human_bytes(self._goal.total * BLOCK_BYTES))

    @property
    def _is_settled(self) -> bool:
        """Whether the goal is reached, or nothing more can be done for it now."""
        if self._guard.owed or self._sweeper.run or self._book.is_waiting:
            return False
        if self._goal.short_reason is not None or self._trouble.reason is not None:
            return True
        return self._book.count(Standing.HELD) == self._goal.total == len(self._book)

    @property
    def _is_short(self) -> bool:
        return self._goal.total > len(self._book)

    def _answer_goal(self, now: float) -> None:
        if not self._goal.is_answered and self._is_settled:
            self._goal.is_answered = True
            self.send_status(now, self._goal.request_id)

    def _status(self, now: float) -> BlocksStatus:
        return BlocksStatus(
            nodes=node_blocks(self._kernel, self._book),
            goal_bytes=self._goal.total * BLOCK_BYTES,
            settled=self._is_settled,
            reserve_bytes=self._limits.reserve_bytes,
            available_bytes=self._guard.available(),
            pressure=self._guard.pressure.is_on(now),
            counters=BlockCounters(**vars(self._counts)),
            refusing=self._trouble.reason,
            short_reason=self._goal.short_reason if self._is_short else None,
        )

    # Sweeps

    def _begin_sweep(self, request_id: int, node: int, now: float) -> None:
        if (refusal := self._sweeper.begin(request_id, node, now)) is not None:
            self._reporter.tell(refusal, request_id)
        elif self._trouble.reason is not None:
            self._sweeper.end(self._trouble.reason)
        elif self._guard.pressure.is_on(now):
            self._sweeper.end(NEEDED)

    def _finish_sweep(self, run: SweepRun, now: float) -> None:
        """Give back what was swept, now that every report of it is answered."""
        self._sweeper.run = None
        self._release()
        self._changed = True
        self._reporter.tell(self._sweeper.finish(run, now), run.request_id)

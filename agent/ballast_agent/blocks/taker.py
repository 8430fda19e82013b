"""Takes blocks, a step at a time: for the goal, or for a sweep.

A step is bounded, so that the guest's memory is looked at again soon. What is free as whole blocks
is taken first. A goal that asks for more makes the kernel move pages together, and then give up
page cache in small steps, as the kernel's own balloon would; a sweep takes only what is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ballast_agent.blocks.book import Book, Standing
from ballast_agent.blocks.compaction import Compaction
from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.limits import Limits
from ballast_agent.blocks.plan import to_take
from ballast_agent.blocks.pool import Pool
from ballast_agent.blocks.status import Counts
from ballast_agent.blocks.supply import given_by, supplies
from ballast_agent.blocks.sweeps import SweepRun
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import short_text
from ballast_protocol.guest_blocks import ANY_NODE, CompactDone

STEP_BLOCKS = 512
"""Blocks in a step that takes what is free."""
HARD_STEP_BLOCKS = 16
"""Blocks in a step that makes the kernel find room."""
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0

ONLY_RESERVE = "only the reserve is left"
NO_BLOCKS = "no more whole blocks of 2 MiB are free"


@dataclass
class Goal:
    """What is to be held, and how far that has got.

    Attributes:
        blocks: By node or `ANY_NODE`.
        request_id: Whose it is.
        is_answered: Whether the host knows what has become of it.
        short_reason: Why less is held; None if it is not, or may still change.
        retry_at: When to try again after falling short.
        retry_seconds: How long the next pause is.
        compaction: None until it was asked for, then whether it goes on.
    """

    blocks: Mapping[int, int] = field(default_factory=dict)
    request_id: int = 0
    is_answered: bool = True
    short_reason: str | None = None
    retry_at: float | None = None
    retry_seconds: float = FIRST_RETRY_SECONDS
    compaction: bool | None = None

    @property
    def total(self) -> int:
        """Blocks to be held in all."""
        return sum(self.blocks.values())

    def fall_short(self, reason: str, now: float, until: float | None = None) -> None:
        """Give up for now.

        Args:
            reason: Why.
            now: The time.
            until: When to try again; None leaves it to the pauses, each twice the one before.
        """
        self.short_reason = short_text(reason)
        self.compaction = None
        self.retry_at = now + self.retry_seconds if until is None else until
        self.retry_seconds = min(2 * self.retry_seconds, MAX_RETRY_SECONDS)

    def progress(self) -> None:
        """Something was taken: it is worth going on."""
        self.short_reason = None
        self.retry_at = None
        self.retry_seconds = FIRST_RETRY_SECONDS


class Taker:
    """Takes blocks out of the guest's hands."""

    def __init__(
        self,
        kernel: Kernel,
        pool: Pool,
        book: Book,
        limits: Limits,
        compaction: Compaction,
        counts: Counts,
    ) -> None:
        """Take nothing yet.

        Args:
            kernel: What is asked.
            pool: Where blocks go.
            book: Where they are entered.
            limits: What is left to the guest.
            compaction: Makes whole blocks of free pages.
            counts: What is counted.
        """
        self._kernel = kernel
        self._pool = pool
        self._book = book
        self._limits = limits
        self._compaction = compaction
        self._counts = counts

    def toward(self, goal: Goal, now: float) -> bool:
        """Take a step towards the goal; tell whether blocks were taken.

        Raises:
            OperatorError: If the kernel, or another user of the pool, does not let us.
        """
        held = self._book.per_node()
        if goal.compaction or (goal.retry_at is not None and now < goal.retry_at):
            return False
        spare = self._limits.spare_blocks(self._available(), sweeping=False)
        if not spare:
            goal.fall_short(ONLY_RESERVE, now)
            return False
        givable = given_by(supplies(self._kernel))
        if self._take(to_take(goal.blocks, held, givable, min(spare, STEP_BLOCKS))):
            goal.progress()
            return True
        return self._harder(goal, held, spare, now)

    def _harder(self, goal: Goal, held: Mapping[int, int], spare: int, now: float) -> bool:
        """Make room first: compact once, then let the kernel reclaim what it must."""
        if goal.compaction is None:
            goal.compaction = True

            def compacted(done: CompactDone) -> None:
                goal.compaction = False

            self._compaction.run(ANY_NODE, compacted)
            return False
        most = min(spare, HARD_STEP_BLOCKS)
        givable = dict.fromkeys(self._kernel.node_pools(), most)
        if self._take(to_take(goal.blocks, held, givable, most)):
            goal.progress()
            return True
        goal.fall_short(NO_BLOCKS, now)
        return False

    def sweep(self, run: SweepRun) -> None:
        """Take a step of a sweep; the run's `ending` is set when there is nothing more to take.

        Raises:
            OperatorError: As for `toward`.
        """
        spare = self._limits.spare_blocks(self._available(), sweeping=True)
        givable = given_by(supplies(self._kernel))
        wanted: dict[int, int] = {}
        left = min(spare, STEP_BLOCKS)
        for node, count in sorted(givable.items()):
            if run.looks_at(node) and min(count, left):
                wanted[node] = min(count, left)
                left -= wanted[node]
        before = self._counts.tried_blocks
        taken = self._take(wanted)
        run.tried_blocks += self._counts.tried_blocks - before
        run.isolated_blocks += taken
        if not taken:
            run.ending = NO_BLOCKS if spare else ONLY_RESERVE

    def _take(self, wanted: Mapping[int, int]) -> int:
        obstacle = self._kernel.obstacle() if wanted else None
        if obstacle is not None:
            raise OperatorError(obstacle)
        taken = 0
        for node, count in wanted.items():
            found = self._pool.take(node, count)
            self._book.add(dict.fromkeys(found, node), Standing.NEW)
            self._counts.tried_blocks += count
            self._counts.isolated_blocks += len(found)
            taken += len(found)
        return taken

    def _available(self) -> int:
        return self._kernel.meminfo().get("MemAvailable", 0)

"""Who takes what a guest is to give up: the agent in whole blocks, the kernel's balloon the rest.

The agent is asked for all of it, rounded down to blocks of 2 MiB, because it is many times faster.
What it is *relied on* for decides what the kernel's balloon is asked for: the rest. So the two
never take the same memory twice, and a guest is not driven to and fro between them:

* An agent is relied on for what it was newly asked for, for as long as it makes progress. What it
  has not given when it says that it cannot, or has stood still for `PATIENCE_SECONDS`, the kernel's
  balloon is asked for. To let go and take again is progress for a few times only, and to come and
  go is none.
* What the agent gives later than that, the kernel's balloon may hand back. It is never asked to
  hand back on a promise.
* When the guest may grow, the kernel's balloon hands back first; the agent only lets go of blocks
  that are more than all that is wanted.
* What an agent lets go of because the guest is short of memory is the guest's to keep: the kernel's
  balloon does not take it in the agent's place. The agent takes it again when it can. A larger
  demand, or an operator who repeats the old one, counts afresh. While the guest is short of memory
  the kernel's balloon waits too.
* An agent that goes away holds on to its blocks. It is waited for `GRACE_SECONDS`, then it is
  relied on for nothing but those.

Nothing here reads a clock: the time is an argument, in seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, NodeGoal

PATIENCE_SECONDS = 5.0
"""How long an agent may stand still before the kernel's balloon is asked for the rest."""

GRACE_SECONDS = 5.0
"""How long an agent that has gone is waited for: a restart of it, of the daemon, of the guest."""


MAX_SETBACKS = 3
"""How often in one wait what an agent takes again after it has lost some counts as progress."""


@dataclass(frozen=True)
class AgentView:
    """The agent as it is now.

    Attributes:
        is_usable: It is there and takes blocks in this guest.
        held_bytes: What it holds, or is presumed to.
        known_bytes: What of that has been reported; less after a takeover, until it is told again.
        has_settled: It has done what the present goal asks, or has said that it cannot.
        pressure_releases: How often it has let go of blocks because the guest needed them.
        is_pressed: The guest is short of memory now.
    """

    is_usable: bool = False
    held_bytes: int = 0
    known_bytes: int = 0
    has_settled: bool = False
    pressure_releases: int = 0
    is_pressed: bool = False

    @property
    def progress_bytes(self) -> int:
        """A number that grows with what the agent does: it takes blocks, or tells of them again."""
        return self.held_bytes + self.known_bytes


class Division:
    """Divides what one guest is to give up.

    Attributes:
        wanted_bytes: What the guest is to give up.
        relied_bytes: What of it the agent is relied on for; whole blocks.
        is_yielding: The guest was short of memory and keeps what it got back.
        deadline: When `tick` is next due; None if time changes nothing.
    """

    def __init__(self) -> None:
        self.wanted_bytes = 0
        self.relied_bytes = 0
        self.is_yielding = False
        self.deadline: float | None = None
        self._view = AgentView()
        self._mark_bytes = self._setbacks = 0

    @property
    def goal_bytes(self) -> int:
        """What the agent is to hold: all that is wanted, in whole blocks."""
        return self.wanted_bytes // BLOCK_BYTES * BLOCK_BYTES

    @property
    def kernel_bytes(self) -> int:
        """What the kernel's balloon is to hold."""
        return self.wanted_bytes - self.relied_bytes

    @property
    def yielded_bytes(self) -> int:
        """What nobody takes at present because the guest needed it."""
        return max(self.relied_bytes - self._view.held_bytes, 0) if self.is_yielding else 0

    def want(self, wanted_bytes: int, now: float) -> None:
        """Take a new amount that the guest is to give up, in bytes."""
        before, is_larger = self.goal_bytes, wanted_bytes > self.wanted_bytes
        self.wanted_bytes = wanted_bytes
        more = max(self.goal_bytes - before, 0) if self._view.is_usable else 0
        relied = max(self.relied_bytes + more, self._view.held_bytes)
        self.relied_bytes = min(relied, self.goal_bytes)
        if is_larger:
            self.insist(now)

    def insist(self, now: float) -> None:
        """An operator wants what is wanted already: what was yielded is asked for again."""
        self.is_yielding = False
        if self._is_short and self.deadline is None:
            self._wait(PATIENCE_SECONDS, now)

    def see(self, view: AgentView, now: float) -> None:
        """Take what is known of the agent."""
        before, self._view = self._view, view
        self.relied_bytes = max(self.relied_bytes, min(view.held_bytes, self.goal_bytes))
        if not self._is_short:
            self.is_yielding, self.deadline = False, None
            return
        if view.pressure_releases > before.pressure_releases:
            self.is_yielding = True
        if view.is_usable and view.has_settled and not (self.is_yielding or view.is_pressed):
            self._settle_for_less()
        elif self.deadline is None:
            self._wait(PATIENCE_SECONDS if view.is_usable else GRACE_SECONDS, now)
        elif self._has_progressed():
            self.deadline = now + PATIENCE_SECONDS

    def resume(
        self,
        wanted_bytes: int,
        relied_bytes: int,
        *,
        is_yielding: bool,
        now: float,
        view: AgentView | None = None,
    ) -> None:
        """Go on where a predecessor stopped, whose agent may have to be waited for.

        Args:
            wanted_bytes: What the guest is to give up.
            relied_bytes: What of it the agent was relied on for.
            is_yielding: Whether the guest keeps what it needed.
            now: The time.
            view: What is known of the agent: what it has done before is no news.
        """
        self._view = view or AgentView()
        self.wanted_bytes = wanted_bytes
        self.relied_bytes = min(relied_bytes // BLOCK_BYTES * BLOCK_BYTES, self.goal_bytes)
        self.is_yielding = is_yielding
        self._wait(GRACE_SECONDS, now)

    def reboot(self, now: float) -> None:
        """The guest has started anew: what it needed before says nothing of now."""
        self.is_yielding = False
        if self._is_short:
            self._wait(GRACE_SECONDS, now)

    def tick(self, now: float) -> None:
        """Let the time pass."""
        if self.deadline is None or now < self.deadline:
            return
        if self.is_yielding:
            self.deadline = None
        elif self._view.is_usable and self._view.is_pressed:
            self.deadline = now + PATIENCE_SECONDS
        else:
            self._settle_for_less()

    @property
    def _is_short(self) -> bool:
        """Whether the agent holds less than it is relied on for."""
        return self._view.held_bytes < self.relied_bytes

    def _wait(self, seconds: float, now: float) -> None:
        """Begin to wait for the agent: progress counts from what it holds now."""
        self.deadline = now + seconds
        self._mark_bytes, self._setbacks = self._view.progress_bytes, 0

    def _has_progressed(self) -> bool:
        """Tell whether the agent holds or has told more than it has since the wait began."""
        now = self._view.progress_bytes
        if now < self._mark_bytes and self._setbacks < MAX_SETBACKS:
            # Its host may have lost the book, and be told it again, which takes a while.
            self._mark_bytes = now
            self._setbacks += 1
        if not self._view.is_usable or now <= self._mark_bytes:
            return False
        self._mark_bytes = now
        return True

    def _settle_for_less(self) -> None:
        self.relied_bytes = min(self._view.held_bytes // BLOCK_BYTES * BLOCK_BYTES, self.goal_bytes)
        self.deadline = None


def node_goals(goal_bytes: int, shares: Mapping[int, int]) -> tuple[NodeGoal, ...]:
    """Return what to ask of each node so that the sum is `goal_bytes`.

    Args:
        goal_bytes: What the agent is to hold, in whole blocks.
        shares: By node, what of it that node is to contribute, in bytes; nodes of low numbers come
            first if the goal is too small for all.
    """
    goals, left = [], goal_bytes
    for node, share in sorted(shares.items()):
        part = min(share // BLOCK_BYTES * BLOCK_BYTES, left)
        goals.append(NodeGoal(node, part))
        left -= part
    return (*goals, NodeGoal(ANY_NODE, left))


def sum_of(goals: Iterable[NodeGoal]) -> int:
    """Return what goals ask for in all, in bytes."""
    return sum(goal.size_bytes for goal in goals)

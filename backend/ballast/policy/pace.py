"""How fast a guest is asked to give memory up: `num_pages` moves in steps, not in one leap.

Giving memory back to the guest is never slowed down: who needs it needs it now.
"""

from __future__ import annotations

from dataclasses import dataclass

from ballast.policy.resize import PAGE_BYTES

STEP_SECONDS = 0.1
"""Steps come about this often; each one interrupts the guest."""

MIN_STEP_BYTES = 1 << 20
"""The smallest step: what Linux's driver hands over in one buffer."""


@dataclass
class Pace:
    """A token bucket in bytes. Time is an argument, in seconds from any origin.

    Attributes:
        rate_bytes: Bytes per second; 0 for no limit.
        since: When the tokens that have not been spent began to gather.
    """

    rate_bytes: int
    since: float = 0.0

    @property
    def step_bytes(self) -> int:
        """The size of one step."""
        step = max(int(self.rate_bytes * STEP_SECONDS), MIN_STEP_BYTES)
        return step // PAGE_BYTES * PAGE_BYTES

    def restart(self, now: float) -> None:
        """Begin without tokens."""
        self.since = now

    def next_ask(self, asked_bytes: int, wanted_bytes: int, actual_bytes: int, now: float) -> int:
        """Return the size that the guest is to be asked for now.

        Args:
            asked_bytes: What it is asked for so far.
            wanted_bytes: What it shall have in the end.
            actual_bytes: What it has. It is never asked for more than two steps ahead of this, so a
                guest that was stuck does not find a backlog that it then works off at full speed.
            now: The time.
        """
        if not self.rate_bytes or wanted_bytes >= asked_bytes:
            self.since = now
            return wanted_bytes
        step = self.step_bytes
        tokens = min(int((now - self.since) * self.rate_bytes), 2 * step)
        left = asked_bytes - wanted_bytes
        if tokens < min(step, left):
            return asked_bytes
        self.since = now
        tokens = max(tokens // PAGE_BYTES * PAGE_BYTES, min(left, PAGE_BYTES))
        furthest = min(asked_bytes, actual_bytes - 2 * step)
        return max(asked_bytes - tokens, wanted_bytes, furthest)

    def next_step(self, asked_bytes: int, wanted_bytes: int) -> float | None:
        """Return when the next step is due; None if there is none."""
        if not self.rate_bytes or wanted_bytes >= asked_bytes:
            return None
        return self.since + min(self.step_bytes, asked_bytes - wanted_bytes) / self.rate_bytes

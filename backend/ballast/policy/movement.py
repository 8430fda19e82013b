"""Is the guest moving, slow, or stuck?

A guest that has no page left to give ("Out of puff" in its log) does not fail: Linux's driver tries
again every 0.2 s without end, and may find a page now and then. So a few pages are not progress.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_PROGRESS_BYTES = 1 << 20
"""What a guest must move within the stall time. Less, and it is stuck."""


@dataclass
class Movement:
    """Follows one resize. Time is an argument, in seconds from any origin.

    Attributes:
        mark_at: When the last progress worth the name was made, or the guest could not move.
        mark_bytes: The size that the guest had then; None if unknown.
        mark_attempts: How often its driver had told its size by then; None if that is not seen.
    """

    mark_at: float
    mark_bytes: int | None = None
    mark_attempts: int | None = None

    def restart(self, actual_bytes: int | None, attempts: int | None, now: float) -> None:
        """Count from here: the guest is there, or cannot move, or has made progress."""
        self.mark_at, self.mark_bytes, self.mark_attempts = now, actual_bytes, attempts

    def look(self, actual_bytes: int, asked_bytes: int, attempts: int | None, now: float) -> None:
        """Take note of the size that a guest has which is asked for another one."""
        if self.mark_bytes is None:
            self.restart(actual_bytes, attempts, now)
            return
        before = abs(self.mark_bytes - asked_bytes)
        if before - abs(actual_bytes - asked_bytes) >= min(MIN_PROGRESS_BYTES, before):
            self.restart(actual_bytes, attempts, now)

    def standing_seconds(self, now: float) -> float:
        """Return for how long the guest has made no progress."""
        return now - self.mark_at

    def tries(self, attempts: int | None) -> bool | None:
        """Return whether the driver has tried since the last progress; None if unknown."""
        if attempts is None:
            return None
        return attempts > (self.mark_attempts or 0)

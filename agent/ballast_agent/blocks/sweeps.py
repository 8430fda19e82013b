"""When to sweep without being asked, and what a sweep has achieved. Pure rules, time passed in.

Nobody can see from within the guest which free memory the host has already got back. So after a
sweep that gained the host little the next one comes later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, SetSweeps, SweepDone

LOOK_SECONDS = 2.0
"""How often to look whether enough has become free."""
MIN_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 600.0
POOR_YIELD = 0.25
"""A sweep that gained the host less than this share of what was reported makes the pause longer."""


@dataclass
class SweepRun:
    """A sweep that goes on.

    Attributes:
        request_id: Who asked; zero if nobody did.
        node: Node to look at, or `ANY_NODE`.
        began: When.
        tried_blocks: Blocks that the kernel was asked for.
        isolated_blocks: Blocks that it gave.
        reported_bytes: Bytes that were acknowledged.
        freed_bytes: What the host says it has gained.
        ending: Why it goes no further; None while it does.
    """

    request_id: int
    node: int
    began: float
    tried_blocks: int = 0
    isolated_blocks: int = 0
    reported_bytes: int = 0
    freed_bytes: int = 0
    ending: str | None = None

    def looks_at(self, node: int) -> bool:
        """Tell whether the sweep is about a node."""
        return self.node in (ANY_NODE, node)

    def done(self, now: float) -> SweepDone:
        """Return what to tell the host at the end."""
        return SweepDone(
            seconds=max(0.0, now - self.began),
            reason=self.ending or "",
            tried_blocks=self.tried_blocks,
            isolated_blocks=self.isolated_blocks,
            reported_bytes=self.reported_bytes,
            freed_bytes=self.freed_bytes,
        )


class SweepSchedule:
    """Decides when a sweep is due."""

    def __init__(self, settings: SetSweeps) -> None:
        self._settings = settings
        self._next: float | None = None
        self._look_at = self._pause = 0.0
        self._low = 0

    def set(self, settings: SetSweeps, now: float) -> None:
        """Follow these settings from now on."""
        self._settings = settings
        every = settings.every_seconds
        self._next = None if every is None else now + every
        self._pause, self._look_at = MIN_PAUSE_SECONDS, now

    def start(self, now: float) -> None:
        """Begin to count the time."""
        self.set(self._settings, now)

    def deadline(self) -> float | None:
        """Return when to ask again whether a sweep is due; None if never."""
        look_at = None if self._settings.when_free_bytes is None else self._look_at
        return min((time for time in (self._next, look_at) if time is not None), default=None)

    def is_due(self, free_bytes: Callable[[], int], now: float) -> bool:
        """Tell whether to sweep now.

        Args:
            free_bytes: Returns how much memory is in free blocks now.
            now: The time.
        """
        if self._next is not None and now >= self._next:
            return True
        wanted = self._settings.when_free_bytes
        if wanted is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        free = free_bytes()
        self._low = min(self._low, free)
        return free - self._low >= wanted

    def swept(self, run: SweepRun, free_bytes: int, now: float) -> None:
        """Take note of how a sweep ended, and of what is free after it."""
        if self._settings.every_seconds is not None:
            self._next = now + self._settings.every_seconds
        self._low = free_bytes
        is_poor = run.freed_bytes < max(POOR_YIELD * run.reported_bytes, BLOCK_BYTES)
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS) if is_poor else MIN_PAUSE_SECONDS
        self._look_at = now + self._pause

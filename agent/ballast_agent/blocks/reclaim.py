"""Gives up page cache little by little, so that it becomes free memory that can be reported.

A guest's page cache grows until it fills the guest, whether or not anybody will read it again, and
what it fills cannot be given to the host. Taking it all would hurt; so a small share is reclaimed
at a time, as long as nobody in the guest waits for memory on account of it. Off unless asked for.
"""

from __future__ import annotations

import logging

from ballast_agent.blocks.background import Background
from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.status import Counts
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import BLOCK_BYTES

STEP_SECONDS = 10.0
MAX_STEP_SECONDS = 320.0
STEP_SHARE = 0.01
"""Share of the page cache that one step asks for."""
MAX_STEP_BYTES = 256 << 20
TOLERATED_STALL = 0.001
"""Share of the time since the last step that tasks may have waited for memory."""

log = logging.getLogger(__name__)


class ReclaimPace:
    """Decides how much and when. Pure rules, time passed in."""

    def __init__(self) -> None:
        self._pause = STEP_SECONDS
        self._stalled_seconds: float | None = None
        self._last = 0.0

    def step_bytes(self, cache_bytes: int, stalled_seconds: float, now: float) -> int:
        """Return how much to reclaim now.

        Args:
            cache_bytes: Page cache that is backed by files.
            stalled_seconds: How long tasks have waited for memory since the guest booted.
            now: The time.
        """
        before, self._stalled_seconds = self._stalled_seconds, stalled_seconds
        elapsed, self._last = now - self._last, now
        if before is None or stalled_seconds - before > TOLERATED_STALL * elapsed:
            self._pause = min(2 * self._pause, MAX_STEP_SECONDS)
            return 0
        self._pause = max(self._pause / 2, STEP_SECONDS)
        size = min(int(cache_bytes * STEP_SHARE), MAX_STEP_BYTES)
        return size if size >= BLOCK_BYTES else 0

    @property
    def next(self) -> float:
        """When to decide again."""
        return self._last + self._pause


class Reclaimer:
    """Has the kernel reclaim, in the background."""

    def __init__(self, kernel: Kernel, background: Background, counts: Counts) -> None:
        self._kernel = kernel
        self._background = background
        self._counts = counts
        self._pace = ReclaimPace()
        self._is_busy = False
        self._trouble: str | None = None

    def deadline(self) -> float | None:
        """Return when `look` is due; None if it is not."""
        return None if self._is_busy or self._trouble is not None else self._pace.next

    def look(self, now: float) -> None:
        """Reclaim a little, if it is time and nobody waits for memory.

        Raises:
            OperatorError: If the kernel does not show how it stands.
        """
        due = self.deadline()
        if due is None or now < due:
            return
        stalled = self._kernel.stalled_seconds()
        size = self._pace.step_bytes(self._cache_bytes(), stalled, now)
        if size:
            self._is_busy = True
            self._background.submit(lambda: self._reclaim(size), self._done)

    def _cache_bytes(self) -> int:
        meminfo = self._kernel.meminfo()
        return meminfo.get("Active(file)", 0) + meminfo.get("Inactive(file)", 0)

    def _reclaim(self, size: int) -> None:
        try:
            before = self._cache_bytes()
            self._kernel.reclaim(size)
            self._counts.reclaimed_bytes += max(0, before - self._cache_bytes())
        except OperatorError as error:
            self._trouble = str(error)
            log.warning("page cache is not reclaimed any more: %s", error)

    def _done(self, seconds: float) -> None:
        self._is_busy = False

"""Looks again for a moment before it sleeps: answers come sooner, for processor time.

A guest's driver works in lock step: it gives a buffer, waits, writes a config field, waits, reads
another, waits. Going to sleep and being woken costs tens of microseconds each time, more than the
answer itself. So a loop that was just called for may look a few more times whether it is called
for again. It adapts as KVM's halt polling does: the moment grows while a longer look would have
paid off, and shrinks to nothing while it does not. Whatever is ready is served at once, so that
nobody waits for the looking.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

FIRST_SECONDS = 0.00001
"""The shortest moment that is worth it; below it there is none."""

_GROWTH = 2


class Window:
    """How long to look before sleeping: from nothing to a bound."""

    def __init__(self, most_seconds: float) -> None:
        """Begin with nothing; `most_seconds` is the bound."""
        self._most = most_seconds
        self.seconds = 0.0

    def slept(self, seconds: float) -> None:
        """Take note that looking was in vain and sleeping then took so long."""
        if seconds <= self._most:
            self.seconds = min(max(self.seconds * _GROWTH, FIRST_SECONDS), self._most)
        else:
            self.seconds /= _GROWTH
            if self.seconds < FIRST_SECONDS:
                self.seconds = 0.0


class BusySelector(selectors.EpollSelector):
    """Waits for descriptors as its base does, after it has looked for a while."""

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Look for up to `most_seconds` before each sleep; `clock` tells the time in seconds."""
        super().__init__()
        self.window = Window(most_seconds)
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; wait until something is, up to `timeout` seconds."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        started = self._clock()
        window = self.window.seconds if timeout is None else min(self.window.seconds, timeout)
        while window:
            if ready := super().select(0):
                return ready
            if self._clock() - started >= window:
                break
        left = None if timeout is None else max(timeout - window, 0)
        ready = super().select(left)
        self.window.slept(self._clock() - started)
        return ready


def run(main: Coroutine[Any, Any, None], busy_poll_seconds: float) -> None:
    """Run a coroutine as `asyncio.run` does, in a loop that looks before it sleeps."""
    if busy_poll_seconds <= 0:
        asyncio.run(main)
        return
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(BusySelector(busy_poll_seconds))
    ) as runner:
        runner.run(main)

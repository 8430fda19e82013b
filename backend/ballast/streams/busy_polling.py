"""Looks again before it sleeps, where experience says that something comes at once.

A guest's driver works in lock step: it gives a buffer, waits, writes a config field, waits, reads
another, waits. Going to sleep and being woken takes longer than some of those gaps, and costs as
much processor time as looking for as long. Which gaps are short does not depend on how long the
last one was, but on where in the lock step it is: so they are learnt by what has happened just
before. Whatever is ready is served at once, so that nobody waits for the looking, and where nothing
ever comes at once there is no looking.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ballast.streams.direct import DirectSelector, make_loop

_WEIGHT = 0.25
"""Of the newest gap in what is expected."""

_MAX_KNOWN = 4096

Situation = tuple[int, int]
"""The two descriptors that have had something last."""


class Gaps:
    """How long it takes until something comes, by what came before."""

    def __init__(self, most_seconds: float) -> None:
        """Begin without experience; longer gaps than `most_seconds` all count the same."""
        self._most = most_seconds
        self._expected: dict[Situation, float] = {}
        self._situation: Situation = (-1, -1)

    @property
    def is_short(self) -> bool:
        """Whether something is expected within the bound, as things are now."""
        return self._expected.get(self._situation, self._most) < self._most

    def came(self, fd: int, seconds: float) -> None:
        """Take note that a descriptor has something, after so long."""
        gap = min(seconds, 2 * self._most)
        before = self._expected.get(self._situation, 2 * self._most)
        if len(self._expected) >= _MAX_KNOWN:
            self._expected.clear()
        self._expected[self._situation] = before + (gap - before) * _WEIGHT
        self._situation = (self._situation[1], fd)

    def nothing_came(self) -> None:
        """Take note that nothing has come, however long it was waited for."""
        self._expected.pop(self._situation, None)


class BusySelector(DirectSelector):
    """Waits for descriptors as its base does, after it has looked for a while where that pays."""

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Look for up to `most_seconds` before a sleep; `clock` tells the time in seconds."""
        super().__init__()
        self._most = most_seconds
        self._clock = clock
        self.gaps = Gaps(most_seconds)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Return which descriptors have something; wait up to `timeout` seconds, or for ever."""
        if timeout is not None and timeout <= 0:
            return super().poll(timeout)
        started = self._clock()
        found = self._look(started, timeout) if self.gaps.is_short else []
        if not found:
            found = super().poll(timeout)
        if found:
            self.gaps.came(found[-1][0], self._clock() - started)
        else:
            self.gaps.nothing_came()
        return found

    def _look(self, started: float, timeout: float | None) -> list[tuple[int, int]]:
        """Look until something is there or the time is over."""
        end = started + (self._most if timeout is None else min(self._most, timeout))
        while not (found := super().poll(0)) and self._clock() < end:
            pass
        return found


def run(main: Coroutine[Any, Any, None], busy_poll_seconds: float) -> None:
    """Run a coroutine as `asyncio.run` does, in a loop that calls the data path's readers directly.

    Args:
        main: The coroutine.
        busy_poll_seconds: How long the loop may look before it sleeps; 0 has it sleep at once.
    """

    def loop() -> asyncio.AbstractEventLoop:
        is_busy = busy_poll_seconds > 0
        return make_loop(BusySelector(busy_poll_seconds) if is_busy else DirectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)

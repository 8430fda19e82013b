"""Asks a guest for statistics again and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Polling:
    """A poll at an interval that can be changed.

    Attributes:
        interval_seconds: The time between two polls; 0 means that nobody polls.
    """

    def __init__(self, ask: Callable[[], object], interval_seconds: int) -> None:
        """Prepare; nothing is asked before `restart`."""
        self.interval_seconds = interval_seconds
        self._ask = ask
        self._task: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """Poll with the interval that is set now, or not at all."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self.interval_seconds:
            self._task = asyncio.create_task(self._poll(self.interval_seconds))

    async def _poll(self, interval_seconds: int) -> None:
        """Ask without end; a guest that does not answer is not asked twice."""
        while True:
            await asyncio.sleep(interval_seconds)
            self._ask()

    async def close(self) -> None:
        """Poll no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

"""Notices an agent that does not report any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MUTE_INTERVALS = 3
"""An agent that has missed this many reports in a row is called mute."""


class MuteWatch:
    """Waits for reports of one agent.

    Attributes:
        is_mute: Whether none has come in time.
    """

    def __init__(self, on_mute: Callable[[], None]) -> None:
        self.is_mute = False
        self._on_mute = on_mute
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, interval_seconds: float) -> None:
        """Begin anew to wait for an agent that reports this often."""
        self.stop()
        patience = MUTE_INTERVALS * interval_seconds
        self._timer = asyncio.get_running_loop().call_later(patience, self._declare)

    def stop(self) -> None:
        """Wait for nobody: there is no agent."""
        self.is_mute = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _declare(self) -> None:
        self.is_mute = True
        self._on_mute()

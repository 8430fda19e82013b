"""Shows whoever watches this process that its event loop turns.

A counter is added to, which never fills up and needs nobody to read it: a keeper that stands still
for an hour holds nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from ballast.keeper.vault import ALIVE
from ballast.streams.fdstore import FdStore

BEAT_SECONDS = 2.0
"""Well below what a keeper's patience is made of (`keeper.supervisor.HEARTBEAT_SECONDS`)."""


class SignOfLife:
    """Beats from now on, in the running event loop."""

    def __init__(self, store: FdStore) -> None:
        """Leave the counter with whoever watches.

        Args:
            store: The keeper's.
        """
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        store.put(ALIVE, self._fd)
        self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)
        self._timer = self._loop.call_later(BEAT_SECONDS, self._beat)

    def close(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.close(self._fd)

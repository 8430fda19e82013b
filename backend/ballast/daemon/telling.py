"""When operators are told of a guest's size: a guest on its way has hundreds of sizes a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice

PAUSE_SECONDS = 0.01
"""How long after a change, at the latest, it is told of."""


class SizeTelling:
    """Tells of a size at once where it is the one that was wanted, and now and then on the way."""

    def __init__(self, device: BalloonDevice, tell: Callable[[], None]) -> None:
        """Begin with nothing to be told.

        Args:
            device: Whose size it is.
            tell: Tells of the size that it has by then.
        """
        self._device = device
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """The guest has another size."""
        if self._device.actual_pages == self._device.target_pages:
            self.close()
            self._tell()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self._tell()

    def close(self) -> None:
        """Tell of nothing that has not been told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

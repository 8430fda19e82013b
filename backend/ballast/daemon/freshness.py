"""How old a guest's statistics really are, and newer ones on request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.virtio.balloon import BalloonFeature


class Freshness:
    """Remembers when statistics came, by a clock that nobody sets.

    The wall clock, which `last-update` is of, can be set back, and old values would look new. Of
    statistics that a predecessor left only that is known, so they are no younger than this process.
    """

    def __init__(
        self,
        device: BalloonDevice,
        request: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_seconds: Callable[[], float] = time.time,
    ) -> None:
        """Begin with a guest that has sent nothing to this process.

        Args:
            device: Whose statistics.
            request: Asks the guest for new ones.
            clock: Seconds from any origin, steady.
            unix_seconds: The wall clock.
        """
        self._device = device
        self._request = request
        self._clock = clock
        self._unix_seconds = unix_seconds
        self._began = clock()
        self._updates = device.statistics.updates
        self._came: float | None = None
        self._arrived = asyncio.Event()

    def note(self) -> None:
        """Take note that a buffer has come; one that is read a second time is not new."""
        if self._device.statistics.updates != self._updates:
            self._updates, self._came = self._device.statistics.updates, self._clock()
        self._arrived.set()

    @property
    def age_seconds(self) -> float | None:
        """How old the last ones are; None if none ever came."""
        last_update = self._device.statistics.last_update
        if not last_update:
            return None
        if self._came is not None:
            return self._clock() - self._came
        return max(self._unix_seconds() - last_update, self._clock() - self._began)

    async def refresh(self, timeout_seconds: float) -> None:
        """Ask the guest for statistics, and return when they are there.

        Raises:
            OperatorError: The guest's driver does not offer statistics, or no driver is at work.
            TimedOutError: The guest did not answer in time.
        """
        device = self._device
        if not device.is_running:
            raise OperatorError("the guest's balloon driver is not running")
        if not device.driver_features & BalloonFeature.STATS_VQ:
            raise OperatorError("the guest's balloon driver does not offer statistics")
        before = device.statistics.updates
        try:
            async with asyncio.timeout(timeout_seconds):
                while device.statistics.updates == before:
                    # What arrives right after a pause is the old buffer, read again: ask once more.
                    self._arrived.clear()
                    self._request()
                    await self._arrived.wait()
        except TimeoutError:
            raise TimedOutError(
                f"the guest sent no statistics within {timeout_seconds:g} s",
                hint="A paused or very busy guest cannot answer; older values stay readable.",
            ) from None

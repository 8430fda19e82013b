"""Serves attached queues slice by slice, so that no VM keeps the thread for long."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from ballast.balloon.device import BalloonDevice
from ballast.queue.split import SplitQueue
from ballast_protocol.errors import GuestError


class RingOwner(Protocol):
    """A transport's rings, to which service reports."""

    def is_active(self, index: int) -> bool:
        """Return whether buffers may be taken from a ring now."""

    def interrupt(self, index: int) -> None:
        """Notify the driver of used buffers."""

    def broke(self, index: int, error: GuestError) -> None:
        """The driver has made a ring unusable."""


class SliceServer:
    """The turns that queues get."""

    def __init__(self, device: BalloonDevice, owner: RingOwner) -> None:
        self._device = device
        self._owner = owner
        self._scheduled: dict[int, asyncio.Handle] = {}
        self._loop = asyncio.get_running_loop()

    def serve(self, index: int, queue: SplitQueue) -> None:
        """Serve a slice of a ring's buffers, and come back if there are more."""
        if index in self._scheduled or not self._owner.is_active(index):
            return
        try:
            done = self._device.process(index, queue, time.time())
        except GuestError as error:
            self._owner.broke(index, error)
            return
        if done.notify:
            self._owner.interrupt(index)
        if done.more:
            self._scheduled[index] = self._loop.call_soon(self._again, index, queue)

    def _again(self, index: int, queue: SplitQueue) -> None:
        del self._scheduled[index]
        self.serve(index, queue)

    def forget(self) -> None:
        """Come back to no ring any more: the queues that were being served are gone."""
        for handle in self._scheduled.values():
            handle.cancel()
        self._scheduled.clear()

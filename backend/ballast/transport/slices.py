"""Serves attached queues slice by slice, so that no VM keeps the thread for long."""

from __future__ import annotations

import time
from typing import Protocol

from ballast.balloon.device import BalloonDevice
from ballast.queue.split import SplitQueue
from ballast.transport.turns import Turn, shared_turns
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
        self._waiting: dict[int, Turn] = {}
        self._turns = shared_turns()

    def serve(self, index: int, queue: SplitQueue) -> None:
        """Serve a slice of a ring's buffers when its turn comes, and come back if there are more.

        Its turn is now, unless other rings have used up what there is for all of them.
        """
        if not self._is_waiting(index) and self._owner.is_active(index):
            self._turns.take(self._turn(index, queue))

    def _turn(self, index: int, queue: SplitQueue) -> Turn:
        turn = self._waiting[index] = Turn(lambda: self._slice(index, queue))
        return turn

    def _is_waiting(self, index: int) -> bool:
        turn = self._waiting.get(index)
        return turn is not None and turn.is_waiting

    def _slice(self, index: int, queue: SplitQueue) -> None:
        if not self._owner.is_active(index):
            return
        try:
            done = self._device.process(index, queue, time.time())
        except GuestError as error:
            self._owner.broke(index, error)
            return
        if done.notify:
            self._owner.interrupt(index)
        if done.more:
            self._turns.queue(self._turn(index, queue))

    def forget(self) -> None:
        """Come back to no ring any more: the queues that were being served are gone."""
        for turn in self._waiting.values():
            turn.cancel()
        self._waiting.clear()

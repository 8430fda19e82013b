"""Serves attached queues slice by slice, so that no VM keeps the thread for long."""

from __future__ import annotations

import time
from functools import partial
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
        self._ring_turns: dict[SplitQueue, Turn] = {}
        self._turns = shared_turns()

    def serve(self, index: int, queue: SplitQueue) -> None:
        """Serve a slice of a ring's buffers when its turn comes, and come back if there are more.

        Its turn is now, unless other rings have used up what there is for all of them.
        """
        turn = self._ring_turns.get(queue)
        if turn is None:
            turn = self._ring_turns[queue] = Turn(partial(self._slice, index, queue))
        if not turn.is_waiting:
            self._turns.take(turn)

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
        if done.more and (turn := self._ring_turns.get(queue)) is not None:
            self._turns.queue(turn)

    def forget(self) -> None:
        """Come back to no ring any more: the queues that were being served are gone."""
        for turn in self._ring_turns.values():
            turn.cancel()
        self._ring_turns.clear()

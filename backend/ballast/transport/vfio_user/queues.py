"""The queues of one vfio-user session, found in guest memory by the addresses the driver wrote."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.memory.map import MemoryMap, Piece
from ballast.queue.split import SplitQueue
from ballast.queue.state import QueueState
from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.slices import SliceServer
from ballast_protocol.errors import GuestError
from ballast_protocol.virtio.balloon import BalloonQueue

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""How long memory that was taken away may take to come back before the queues go on without it."""


def _resolve(memory: MemoryMap, address: int, length: int) -> Piece:
    return memory.guest_piece(address, length)


class Queues:
    """Attaches, serves and releases queues; implements `transport.slices.RingOwner`.

    A queue whose memory has been taken away keeps its position: QEMU unmaps and maps all of RAM
    when the layout of low memory changes, and the driver goes on as if nothing had happened. The
    pieces come one by one. A ring may be there before a buffer is, and a buffer that is not there
    would be returned as if it were malformed; so nothing is served before as much memory is back
    as there was, or it is clear that no more will come.
    """

    def __init__(
        self,
        device: BalloonDevice,
        *,
        may_run: Callable[[], bool],
        interrupt: Callable[[int], None],
        broke: Callable[[], None],
    ) -> None:
        """Begin without queues.

        Args:
            device: What serves them.
            may_run: Whether the function may touch the guest's memory now.
            interrupt: Notifies the driver of used buffers in a queue.
            broke: Called when the driver has made a queue unusable.
        """
        self._device = device
        self._may_run = may_run
        self._interrupt = interrupt
        self._broke = broke
        self._memory = MemoryMap()
        self._whole_bytes = 0
        self._settling: asyncio.TimerHandle | None = None
        self._queues: dict[int, SplitQueue] = {}
        self._resumed: set[int] = set()
        self._due: list[int] | None = None
        self._broken: set[int] = set()
        self._problems: dict[int, str] = {}
        self._slices = SliceServer(device, self)
        self._loop = asyncio.get_running_loop()

    @property
    def problem(self) -> str:
        """What keeps a queue from working; empty if nothing does."""
        return next(iter(self._problems.values()), "")

    @property
    def whole_bytes(self) -> int:
        """How much memory there was when all of it was there."""
        return self._whole_bytes

    def is_active(self, index: int) -> bool:
        """Return whether buffers may be taken from a queue now."""
        queue = self._queues.get(index)
        return (
            queue is not None
            and queue.is_attached
            and index not in self._broken
            and self._settling is None
            and self._device.is_running
            and self._may_run()
        )

    def interrupt(self, index: int) -> None:
        """Notify the driver of used buffers."""
        self._interrupt(index)

    def broke(self, index: int, error: GuestError) -> None:
        """Take nothing more from a queue until the driver starts anew."""
        self._broken.add(index)
        self._device.metrics.broken_queues += 1
        self._report(index, f"the guest broke queue {index}: {error}")
        self._broke()

    def _report(self, index: int, text: str) -> None:
        """Tell the operator what is wrong with a queue, loudly and once."""
        if text not in self._problems.values():
            log.error("%s", text)
        self._problems[index] = text

    # While a message is being served ---------------------------------------------------------

    def hold(self) -> None:
        """Serve nothing before `release`: what was decided is to be saved first."""
        self._due = []

    def release(self) -> None:
        """Serve what was to be served meanwhile."""
        due, self._due = self._due, None
        for index in due or ():
            self.serve(index)

    # Life ------------------------------------------------------------------------------------

    def start(self, states: dict[int, QueueState]) -> None:
        """Begin with the queues that a driver has set up, and perhaps filled before that."""
        self.stop()
        for index, state in states.items():
            self.add(index, state)

    def resume(self, states: dict[int, QueueState], memory: MemoryMap, whole_bytes: int) -> None:
        """Go on where a predecessor has stopped, which only the used rings tell.

        Args:
            states: The queues as the driver set them up.
            memory: What there is of its memory at the moment.
            whole_bytes: How much there was before QEMU began to take it away, if it has.
        """
        self._whole_bytes = whole_bytes
        self._queues = {index: SplitQueue(state, _resolve) for index, state in states.items()}
        self._resumed = set(self._queues)
        self.use(memory)

    def add(self, index: int, state: QueueState) -> None:
        """Begin with one more queue, into which the driver has put nothing before."""
        self._queues[index] = SplitQueue(state, _resolve)
        self._attach(index)
        self.serve(index)

    def _attach(self, index: int) -> None:
        try:
            self._queues[index].attach(self._memory)
        except GuestError as error:
            if self._settling is None:
                text = f"queue {index} cannot be used: {error}"
                self._report(index, text if self._memory.regions else NO_SHARED_MEMORY)
        else:
            self._find_position(index)
            if index not in self._broken:
                self._problems.pop(index, None)

    def _find_position(self, index: int) -> None:
        """Take the position of a resumed queue from its used ring: what is not there is not done.

        The driver could have written another one there, to its own harm: whatever it says, only
        what is in its own rings is served.
        """
        if index in self._resumed:
            self._resumed.discard(index)
            queue = self._queues[index]
            queue.adopt_used_index()
            queue.state.next_avail = queue.state.next_used

    def stop(self) -> None:
        """Let go of all queues: the driver has reset the device."""
        self._slices.forget()
        self.let_go()
        self._queues.clear()
        self._resumed.clear()
        self._broken.clear()
        self._problems.clear()

    def close(self) -> None:
        """Let go of all queues for good."""
        self.stop()
        self._cancel_settling()

    def let_go(self) -> None:
        """Hold no guest memory, so that regions can be closed."""
        for queue in self._queues.values():
            queue.detach()

    def use(self, memory: MemoryMap) -> None:
        """Go on in another memory map, from which a queue may be missing for a while."""
        self._memory = memory
        self._device.set_memory(memory)
        self._cancel_settling()
        if memory.mapped_bytes() >= self._whole_bytes:
            self._settle()
        else:
            self._settling = self._loop.call_later(SETTLE_SECONDS, self._settle)

    def _cancel_settling(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def _settle(self) -> None:
        """Go on with the memory that there is."""
        self._settling = None
        self._whole_bytes = self._memory.mapped_bytes()
        for index in self._queues:
            self._attach(index)
            self.serve(index)

    def serve(self, index: int) -> None:
        """Serve what the driver has put into a queue."""
        if self._due is not None:
            if index not in self._due:
                self._due.append(index)
            return
        queue = self._queues.get(index)
        if queue is not None:
            self._slices.serve(index, queue)

    def serve_all(self) -> None:
        """Look at every queue: notifications may have been missed."""
        for index in self._queues:
            self.serve(index)

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        for index, queue in self._queues.items():
            if self._device.role(index) is BalloonQueue.STATS and self.is_active(index):
                notify = self._device.statistics.give_back(queue)
                if notify:
                    self._interrupt(index)
                return notify is not None
        return False

    def looks_empty(self, index: int, avail_index: int) -> bool:
        """Return whether our view of a queue has nothing where the client says there is something.

        Args:
            index: The queue.
            avail_index: The driver's index, as the client read it a moment ago.
        """
        queue = self._queues.get(index)
        return (
            queue is not None and queue.is_attached and avail_index != 0 and queue.driver_index == 0
        )

    def driver_ring(self, index: int) -> int | None:
        """Return the guest address of a queue's available ring."""
        queue = self._queues.get(index)
        return queue.state.avail_address if queue is not None else None

    def describe(self) -> list[dict[str, int]]:
        """Return which queues buffers may be taken from, and where they are in guest memory."""
        return [
            {"index": index, **queue.describe()}
            for index, queue in self._queues.items()
            if self.is_active(index)
        ]

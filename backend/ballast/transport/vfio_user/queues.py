"""The queues of one vfio-user session, found in guest memory by the addresses the driver wrote."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.memory.map import MemoryMap, Piece
from ballast.queue.split import SplitQueue
from ballast.queue.state import QueueState
from ballast.transport.slices import SliceServer
from ballast_protocol.errors import GuestError
from ballast_protocol.virtio.balloon import BalloonQueue

log = logging.getLogger(__name__)


def _resolve(memory: MemoryMap, address: int, length: int) -> Piece:
    return memory.guest_piece(address, length)


class Queues:
    """Attaches, serves and releases queues; implements `transport.slices.RingOwner`.

    A queue whose memory has been taken away keeps its position: QEMU unmaps and maps all of RAM
    when the layout of low memory changes, and the driver goes on as if nothing had happened.
    """

    def __init__(
        self,
        device: BalloonDevice,
        *,
        interrupt: Callable[[int], None],
        problem: Callable[[str], None],
    ) -> None:
        """Begin without queues.

        Args:
            device: What serves them.
            interrupt: Notifies the driver of used buffers in a queue.
            problem: Told what keeps a queue from working.
        """
        self._device = device
        self._interrupt = interrupt
        self._problem = problem
        self._memory = MemoryMap()
        self._queues: dict[int, SplitQueue] = {}
        self._broken: set[int] = set()
        self._slices = SliceServer(device, self)

    def is_active(self, index: int) -> bool:
        """Return whether buffers may be taken from a queue now."""
        queue = self._queues.get(index)
        return (
            queue is not None
            and queue.is_attached
            and index not in self._broken
            and self._device.is_running
        )

    def interrupt(self, index: int) -> None:
        """Notify the driver of used buffers."""
        self._interrupt(index)

    def broke(self, index: int, error: GuestError) -> None:
        """Take nothing more from a queue until the driver starts anew."""
        self._broken.add(index)
        self._device.metrics.broken_queues += 1
        self._problem(f"the guest broke queue {index}: {error}")

    def start(self, states: dict[int, QueueState]) -> None:
        """Begin with the queues that a driver has set up."""
        self.stop()
        self._queues = {index: SplitQueue(state, _resolve) for index, state in states.items()}
        for index in self._queues:
            self._attach(index)

    def _attach(self, index: int) -> None:
        queue = self._queues[index]
        try:
            queue.attach(self._memory)
        except GuestError as error:
            self._problem(f"queue {index} cannot be used: {error}")
            return
        queue.adopt_used_index()

    def stop(self) -> None:
        """Let go of all queues: the driver has reset the device."""
        self.let_go()
        self._queues.clear()
        self._broken.clear()

    def let_go(self) -> None:
        """Hold no guest memory, so that regions can be closed."""
        for queue in self._queues.values():
            queue.detach()

    def use(self, memory: MemoryMap) -> None:
        """Go on in another memory map, from which a queue may be missing for a while."""
        self._memory = memory
        self._device.set_memory(memory)
        for index, queue in self._queues.items():
            try:
                queue.attach(memory)
            except GuestError:
                log.debug("queue %d is not in the present memory map", index)
                continue
            self.serve(index)

    def serve(self, index: int) -> None:
        """Serve what the driver has put into a queue."""
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
                notify = self._device.request_statistics(queue)
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

    def active(self) -> list[int]:
        """Return the queues from which buffers may be taken."""
        return [index for index in self._queues if self.is_active(index)]

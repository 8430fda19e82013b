"""A guest with a balloon device and all of its queues, without any transport between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ballast.balloon.device import BalloonDevice
from ballast.balloon.features import DEFAULT_FEATURES
from ballast.balloon.slices import Slice
from ballast.memory.map import MemoryMap
from ballast.queue.split import SplitQueue
from ballast_protocol.virtio.balloon import BalloonFeature, BalloonQueue, queue_order
from support.backend import Listener
from support.driver import PAGE_SIZE, DriverQueue, GuestRam, RamBlock, Segment
from support.memory import attached, device_queue, mapped
from support.pages import pfn_array

RAM_BYTES = 16 << 20
PAGES = RAM_BYTES // PAGE_SIZE
FREE = range(PAGES - 64, PAGES)
"""Pages that no ring and no buffer uses."""

ALL = DEFAULT_FEATURES | BalloonFeature.FREE_PAGE_HINT
NOW = 1_700_000_000.75


class Guest:
    """A device, a map, and one driver's queue for each of the queues that the features make."""

    def __init__(
        self, ram: GuestRam, memory: MemoryMap, stack: ExitStack, features: int, event_idx: bool
    ) -> None:
        self.ram, self.memory, self.features = ram, memory, features
        self.listener = Listener()
        self.device = BalloonDevice(self.listener, balloon_features=BalloonFeature(features))
        self.device.set_memory(memory)
        self.device.start(features, fresh=True)
        self.indices = {role: index for index, role in enumerate(queue_order(features))}
        self.drivers = {
            role: DriverQueue(ram, 128, event_idx=event_idx, slot_size=2048)
            for role in self.indices
        }
        self.queues: dict[BalloonQueue, SplitQueue] = {
            role: stack.enter_context(attached(device_queue(driver), memory))
            for role, driver in self.drivers.items()
        }

    def process(self, role: BalloonQueue) -> Slice:
        return self.device.process(self.indices[role], self.queues[role], NOW)

    def send(self, role: BalloonQueue, data: bytes) -> Slice:
        """Put one buffer into a queue, have it served and take it back."""
        self.drivers[role].add_out(data)
        done = self.process(role)
        self.drivers[role].collect()
        return done

    def inflate(self, *pfns: int) -> None:
        self.send(BalloonQueue.INFLATE, pfn_array(pfns))

    def deflate(self, *pfns: int) -> None:
        self.send(BalloonQueue.DEFLATE, pfn_array(pfns))

    def report(self, *runs: tuple[int, int]) -> None:
        into = [Segment(first * PAGE_SIZE, count * PAGE_SIZE) for first, count in runs]
        driver = self.drivers[BalloonQueue.REPORTING]
        driver.add(into=into, indirect=True)
        self.process(BalloonQueue.REPORTING)
        driver.collect()

    def held(self) -> set[int]:
        runs = self.device.pages.ledger.runs()
        return {page for first, count in runs for page in range(first, first + count)}


@contextmanager
def guest_with(features: int = int(ALL), *, event_idx: bool = False) -> Iterator[Guest]:
    with (
        GuestRam.of(RamBlock(0, RAM_BYTES)) as ram,
        mapped(ram) as memory,
        ExitStack() as stack,
    ):
        yield Guest(ram, memory, stack, features, event_idx)

"""Guest RAM of the driver's fake as a memory map of the backend's, and queues over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ballast.memory.map import MemoryMap, Piece, Region, RegionLayout
from ballast.queue.split import SplitQueue
from ballast.queue.state import QueueState
from support.driver import DriverQueue, GuestRam


def region_of(ram: GuestRam, index: int = 0) -> Region:
    """Map one block of `ram` once more, as a back-end that got its descriptor would."""
    announced = ram.regions[index].region
    layout = RegionLayout(
        guest_address=announced.guest_address,
        size_bytes=announced.size,
        user_address=announced.user_address,
        file_offset=announced.mmap_offset,
    )
    return Region(layout, os.dup(ram.regions[index].fd))


@contextmanager
def mapped(ram: GuestRam) -> Iterator[MemoryMap]:
    """Map all of `ram` while the context lasts."""
    memory = MemoryMap()
    for index in range(len(ram.regions)):
        memory = memory.with_region(region_of(ram, index))
    try:
        yield memory
    finally:
        for region in memory.regions:
            region.close()


def by_guest_address(memory: MemoryMap, address: int, length: int) -> Piece:
    """Find a ring by its guest address."""
    return memory.guest_piece(address, length)


def device_queue(driver: DriverQueue, *, indirect: bool = True) -> SplitQueue:
    """Return the device's side of a driver's queue, not attached yet."""
    state = QueueState(
        size=driver.size,
        desc_address=driver.descriptors,
        avail_address=driver.avail,
        used_address=driver.used,
        next_avail=driver.start_index,
        event_idx=driver.event_idx,
        indirect=indirect,
    )
    return SplitQueue(state, by_guest_address)


@contextmanager
def attached(queue: SplitQueue, memory: MemoryMap) -> Iterator[SplitQueue]:
    """Use a queue in a memory map while the context lasts."""
    queue.attach(memory)
    queue.adopt_used_index()
    try:
        yield queue
    finally:
        queue.detach()

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Iterator

import pytest

from ballast.soak.rings import GuestMemory, Ring, gap_seconds
from ballast_protocol.errors import OperatorError

SIZE = 1 << 20
AVAIL, USED = 0x1000, 0x2000


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, SIZE)
    with mmap.mmap(fd, SIZE) as mapping:
        yield mapping
    os.close(fd)


def set_index(memory: mmap.mmap, ring: int, index: int) -> None:
    struct.pack_into("<H", memory, ring + 2, index)


def test_the_memory_of_a_process_is_found_by_its_size(memory: mmap.mmap) -> None:
    set_index(memory, AVAIL, 5)
    set_index(memory, USED, 4)
    described = [{"index": 0, "avail-address": AVAIL, "used-address": USED}, {"index": 2}]
    with GuestMemory(os.getpid(), SIZE) as guest:
        (ring,) = guest.rings(described, [0, 1])
        assert (ring.avail_index, ring.used_index) == (5, 4)
        assert ring.is_waiting


def test_a_process_without_such_memory_is_refused() -> None:
    with pytest.raises(OperatorError, match="no memory file"):
        GuestMemory(os.getpid(), 12345 * 4096)


async def test_the_gap_ends_with_the_first_buffer_that_comes_back(memory: mmap.mmap) -> None:
    set_index(memory, AVAIL, 7)
    set_index(memory, USED, 6)
    killed = time.monotonic()
    gap = asyncio.create_task(gap_seconds([Ring(memory, AVAIL, USED)], killed))
    await asyncio.sleep(0.05)
    assert not gap.done()
    set_index(memory, USED, 7)
    seconds = await gap
    assert seconds is not None
    assert seconds >= 0.05


async def test_a_guest_that_waits_for_nothing_has_no_gap(memory: mmap.mmap) -> None:
    set_index(memory, AVAIL, 7)
    set_index(memory, USED, 7)
    assert await gap_seconds([Ring(memory, AVAIL, USED)], time.monotonic()) is None


async def test_a_guest_without_rings_has_no_gap() -> None:
    assert await gap_seconds([], time.monotonic()) is None

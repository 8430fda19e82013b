from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ballast.streams.fds import FdSet
from ballast.streams.fdstore import no_store
from ballast.transport.kept import KeptFds
from ballast.transport.vfio_user.memory import DmaMemory, SavedRegion
from ballast_protocol.errors import MalformedError, StateError
from ballast_protocol.vfio_user.codes import DmaMapFlag
from ballast_protocol.vfio_user.events import DmaMap
from support.fds import memory_file, none_left_open
from support.stores import processes

READ, BOTH = DmaMapFlag.READ, DmaMapFlag.READ | DmaMapFlag.WRITE
PAGE = 4096


@pytest.fixture
def file() -> Iterator[int]:
    fd = memory_file(16 * PAGE)
    yield fd
    os.close(fd)


def add(memory: DmaMemory, file: int | None, mapped: DmaMap) -> None:
    with FdSet([] if file is None else [os.dup(file)]) as fds:
        memory.add(mapped, fds)


def dma(address: int, pages: int, offset: int = 0, flags: DmaMapFlag = BOTH) -> DmaMap:
    return DmaMap(address, pages * PAGE, offset, flags, has_fd=True)


def test_ram_comes_and_goes(file: int) -> None:
    with none_left_open():
        memory = DmaMemory(KeptFds(no_store()))
        add(memory, file, dma(0, 8))
        add(memory, file, dma(1 << 20, 8, 8 * PAGE))
        os.pwrite(file, b"here", 9 * PAGE)
        assert memory.map.read((1 << 20) + PAGE, 4) == b"here"
        assert memory.map.backing_bytes() == 16 * PAGE
        memory.remove(0, 8 * PAGE)
        assert [region.layout.guest_address for region in memory.map.regions] == [1 << 20]
        memory.remove(0, 8 * PAGE)  # a map that was no RAM
        sequence = memory.map.sequence
        memory.close()
        assert memory.map.regions == ()
        assert memory.map.sequence > sequence


def test_what_is_not_the_guests_to_give_is_left_out(file: int) -> None:
    with none_left_open():
        memory = DmaMemory(KeptFds(no_store()))
        add(memory, file, dma(0, 8, flags=READ))
        add(memory, file, dma(0, 8, flags=DmaMapFlag.WRITE))
        add(memory, None, DmaMap(0, PAGE, 0, READ, has_fd=False))
        assert memory.maps_without_file == 0
        add(memory, None, DmaMap(0, PAGE, 0, BOTH, has_fd=False))
        assert memory.maps_without_file == 1
        assert memory.map.regions == ()


@pytest.mark.parametrize(
    "mapped", [dma(0, 17), dma(0, 1, 16 * PAGE), dma(1, 1), dma(1 << 52, 1), dma(4 * PAGE, 2)]
)
def test_what_cannot_be_mapped_leaves_nothing_behind(file: int, mapped: DmaMap) -> None:
    with none_left_open():
        memory = DmaMemory(KeptFds(no_store()))
        add(memory, file, dma(4 * PAGE, 4))
        before = memory.map
        with pytest.raises(MalformedError):
            add(memory, file, mapped)
        assert memory.map is before
        memory.close()


# A successor


def test_a_successor_maps_the_same_memory(file: int) -> None:
    with processes() as store:
        before = DmaMemory(KeptFds(store.part()))
        add(before, file, dma(0, 8))
        add(before, file, dma(1 << 20, 4, 8 * PAGE))
        os.pwrite(file, b"here", 9 * PAGE)
        saved = before.save()
        before.close()

        after = DmaMemory(KeptFds(store.part()))
        after.restore(saved)
        assert after.save() == saved
        assert after.map.read((1 << 20) + PAGE, 4) == b"here"
        assert after.map.backing_bytes() == 16 * PAGE
        after.close()


def test_one_descriptor_is_kept_for_each_file_as_long_as_it_is_mapped(file: int) -> None:
    other = memory_file(16 * PAGE)
    with processes() as store:
        kept = KeptFds(store.part())
        memory = DmaMemory(kept)
        for number in range(8):
            add(memory, file, dma(number << 20, 2, 2 * number * PAGE))
        add(memory, other, dma(1 << 30, 16))
        assert store.held == {"memory.0", "memory.1"}
        memory.remove(0, 2 * PAGE)
        kept.settle()
        assert store.held == {"memory.0", "memory.1"}
        for number in range(1, 8):
            memory.remove(number << 20, 2 * PAGE)
        kept.settle()
        assert store.held == {"memory.1"}
        add(memory, file, dma(0, 8))
        assert store.held == {"memory.0", "memory.1"}
        memory.close()
        kept.settle()
        assert store.held == set()
    os.close(other)


def test_a_file_that_went_and_came_back_in_one_step_stays(file: int) -> None:
    with processes() as store:
        kept = KeptFds(store.part())
        memory = DmaMemory(kept)
        add(memory, file, dma(0, 8))
        memory.remove(0, 8 * PAGE)
        add(memory, file, dma(0, 4))
        kept.settle()
        assert store.held == {"memory.0"}
        memory.close()


@pytest.mark.parametrize(
    ("saved", "complaint"),
    [
        (SavedRegion(0, PAGE, 0, 7), "memory.7"),
        (SavedRegion(0, 17 * PAGE, 0, 0), "cannot be used"),
        (SavedRegion(0, PAGE, 1, 0), "cannot be used"),
    ],
)
def test_memory_that_is_not_what_it_was(file: int, saved: SavedRegion, complaint: str) -> None:
    with processes() as store:
        before = DmaMemory(KeptFds(store.part()))
        add(before, file, dma(0, 8))
        before.close()
        after = DmaMemory(KeptFds(store.part()))
        with pytest.raises(StateError, match=complaint):
            after.restore((SavedRegion(1 << 20, PAGE, 0, 0), saved))
        after.close()

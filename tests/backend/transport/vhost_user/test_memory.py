from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ballast.streams.fds import FdSet
from ballast.streams.fdstore import no_store
from ballast.transport.kept import KeptFds
from ballast.transport.vhost_user.memory import SessionMemory
from ballast_protocol.errors import MalformedError
from ballast_protocol.vhost_user.message import MemoryRegion
from support.driver import GuestRam, RamBlock
from support.fds import none_left_open

SIZE = 1 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam.of(RamBlock(0, SIZE), RamBlock(SIZE, SIZE), RamBlock(1 << 32, SIZE)) as ram:
        yield ram


@pytest.fixture
def memory(ram: GuestRam) -> Iterator[SessionMemory]:
    memory = SessionMemory(KeptFds(no_store()))
    with none_left_open():
        yield memory
        memory.close()


def lent(ram: GuestRam, *indices: int) -> FdSet:
    """Return descriptors as they come with a message."""
    return FdSet([os.dup(ram.regions[index].fd) for index in indices])


def regions(ram: GuestRam, *indices: int) -> tuple[MemoryRegion, ...]:
    return tuple(ram.regions[index].region for index in indices)


def starts(memory: SessionMemory) -> list[int]:
    return [region.layout.guest_address for region in memory.map.regions]


def test_regions_come_and_go_with_their_descriptors(ram: GuestRam, memory: SessionMemory) -> None:
    for index in (2, 0):
        with lent(ram, index) as fds:
            memory.add(ram.regions[index].region, fds)
            assert len(fds) == 0
    assert starts(memory) == [0, 1 << 32]
    assert memory.map.sequence == 2
    memory.remove(ram.regions[2].region)
    assert (starts(memory), memory.map.sequence) == ([0], 3)


def test_a_region_is_found_whatever_its_offset(ram: GuestRam, memory: SessionMemory) -> None:
    with lent(ram, 0) as fds:
        memory.add(ram.regions[0].region, fds)
    memory.remove(replace(ram.regions[0].region, mmap_offset=12345))
    assert starts(memory) == []


def test_what_cannot_be_added_leaks_nothing(ram: GuestRam, memory: SessionMemory) -> None:
    with lent(ram, 0) as fds:
        memory.add(ram.regions[0].region, fds)
    beyond = replace(ram.regions[1].region, mmap_offset=SIZE)
    for bad in (ram.regions[0].region, beyond):
        with lent(ram, 1) as fds, pytest.raises(MalformedError):
            memory.add(bad, fds)
    assert starts(memory) == [0]


def test_a_table_takes_the_place_of_everything(ram: GuestRam, memory: SessionMemory) -> None:
    with lent(ram, 0, 1) as fds:
        memory.replace(regions(ram, 0, 1), fds)
    with lent(ram, 1, 2) as fds:
        memory.replace(regions(ram, 1, 2), fds)
    assert starts(memory) == [SIZE, 1 << 32]
    memory.replace((), FdSet())
    assert starts(memory) == []


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_table_with_one_bad_region_changes_nothing(
    ram: GuestRam, memory: SessionMemory, bad: int
) -> None:
    with lent(ram, 1) as fds:
        memory.replace(regions(ram, 1), fds)
    before = memory.map
    table = list(regions(ram, 0, 1, 2))
    table[bad] = replace(table[bad], size=table[bad].size * 2)
    with lent(ram, 0, 1, 2) as fds, pytest.raises(MalformedError):
        memory.replace(tuple(table), fds)
    assert memory.map is before
    assert memory.map.read(SIZE, 4) == bytes(4)


def test_removing_what_is_not_there(ram: GuestRam, memory: SessionMemory) -> None:
    with pytest.raises(MalformedError, match="no memory region"):
        memory.remove(ram.regions[0].region)

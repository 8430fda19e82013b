"""Regions of real huge pages, which can be mapped and unmapped only whole."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ballast.memory.map import MemoryMap, Piece, Region, RegionLayout
from ballast.memory.reclaim import discard, punch_hole
from ballast.memory.residency import allocated_bytes
from support.fds import none_left_open
from support.hugetlb import HUGE_PAGE, available_huge_pages, huge_file, huge_pages

# Another test may have the host's pool for as long as a guest runs.
pytestmark = pytest.mark.timeout(600)

PAGE = mmap.PAGESIZE
PAGES = 4


@pytest.fixture
def file() -> Iterator[int]:
    """Return a file of 4 huge pages, all of them used."""
    with huge_pages(PAGES):
        fd = huge_file(PAGES * HUGE_PAGE)
        with mmap.mmap(fd, PAGES * HUGE_PAGE) as vmm:
            for at in range(0, len(vmm), PAGE):
                vmm[at] = 1
        yield fd
        os.close(fd)


def region(file: int, start: int, end: int) -> Region:
    return Region(RegionLayout(start, end - start, start, start), os.dup(file))


def is_mapped(fd: int) -> bool:
    """Return whether this process maps a file."""
    inode = str(os.fstat(fd).st_ino)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(inode in line.split()[4:5] for line in lines)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 4 * HUGE_PAGE),
        (0, 0xA0000),
        (0xE8000, 0xF0000),
        (1 << 20, 4 * HUGE_PAGE),
        (HUGE_PAGE - PAGE, HUGE_PAGE + PAGE),
    ],
)
def test_any_part_of_the_file_is_a_region_and_goes_again(file: int, start: int, end: int) -> None:
    """The pieces into which firmware cuts low memory are made of 4 KiB pages."""
    with none_left_open():
        found = region(file, start, end)
        assert found.host_page_bytes == HUGE_PAGE
        assert len(found.view) == end - start
        with mmap.mmap(file, PAGES * HUGE_PAGE) as vmm:
            vmm[start], vmm[end - 1] = 7, 8
            assert (found.view[0], found.view[-1]) == (7, 8)
        assert is_mapped(file)
        found.close()
        assert not is_mapped(file)


def test_only_whole_huge_pages_of_the_region_are_given_back(file: int) -> None:
    found = region(file, 1 << 20, 3 * HUGE_PAGE + PAGE)
    with closing(found):
        before = allocated_bytes([file])
        assert discard(Piece(found, 0, found.layout.size_bytes)) == 2 * HUGE_PAGE
        assert before - allocated_bytes([file]) == 2 * HUGE_PAGE
        assert found.view[0] == 1
        assert found.view[2 * HUGE_PAGE + (1 << 20)] == 1


def test_mapping_takes_nothing_back_that_was_given_and_that_others_have(file: int) -> None:
    """A worker that takes over, or a map that firmware changes, maps what was given back."""
    punch_hole(file, 0, 3 * HUGE_PAGE)
    available = available_huge_pages()
    with closing(region(file, 0, PAGES * HUGE_PAGE)):
        assert available_huge_pages() == available
    other = huge_file(available * HUGE_PAGE)
    with mmap.mmap(other, available * HUGE_PAGE), closing(region(file, 0, PAGES * HUGE_PAGE)):
        assert available_huge_pages() == 0
    os.close(other)


def test_a_page_that_others_have_costs_the_region_only(file: int) -> None:
    punch_hole(file, 0, 3 * HUGE_PAGE)
    other = huge_file(available_huge_pages() * HUGE_PAGE)
    told: list[str] = []
    found = region(file, 1 << 20, PAGES * HUGE_PAGE)
    found.on_damage = lambda: told.append("damaged")
    with mmap.mmap(other, os.fstat(other).st_size), closing(found):
        memory = MemoryMap().with_region(found)
        assert memory.read(3 * HUGE_PAGE, 2) == b"\1\0"
        assert told == []
        assert memory.read(1 << 20, 2) == b"\0\0"
        assert told == ["damaged"]
    os.close(other)
    assert not is_mapped(file)

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from ballast.memory import reclaim_many
from ballast.memory.map import Piece, Region, RegionLayout
from ballast.memory.reclaim_many import best_discard_many, can_discard_many, discard_many
from support.fds import memory_file, none_left_open

PAGE = 4096
PAGES = 4096
OFFSET = 3 * PAGE

pytestmark = pytest.mark.skipif(
    not can_discard_many(), reason="the kernel cannot discard many pieces at once"
)


@pytest.fixture
def region() -> Iterator[Region]:
    fd = memory_file(OFFSET + PAGES * PAGE)
    os.pwrite(fd, b"\xa5" * (OFFSET + PAGES * PAGE), 0)
    region = Region(RegionLayout(0x40000000, PAGES * PAGE, 0, OFFSET), fd)
    yield region
    region.close()


def gone(region: Region) -> set[int]:
    view = region.view
    return {page for page in range(PAGES) if not any(view[page * PAGE : (page + 1) * PAGE])}


def pieces(region: Region, pages: range) -> list[Piece]:
    return [Piece(region, page * PAGE, PAGE) for page in pages]


@pytest.mark.parametrize("pages", [range(0, PAGES, 2), range(1, 9, 3), range(PAGES - 1, PAGES)])
def test_exactly_the_pieces_go_however_many_they_are(region: Region, pages: range) -> None:
    with none_left_open():
        assert discard_many(pieces(region, pages)) == len(pages) * PAGE
    # Before anything is read: that fills the holes.
    assert os.fstat(region.fd).st_blocks * 512 == OFFSET + (PAGES - len(pages)) * PAGE
    assert gone(region) == set(pages)
    assert os.fstat(region.fd).st_size == OFFSET + PAGES * PAGE


def test_pieces_of_several_pages_and_of_several_regions(region: Region) -> None:
    fd = memory_file(PAGES * PAGE)
    os.pwrite(fd, b"\xa5" * PAGES * PAGE, 0)
    other = Region(RegionLayout(0, PAGES * PAGE, 0, 0), fd)
    wanted = [Piece(other, 0, 5 * PAGE), Piece(region, 7 * PAGE, 2 * PAGE)]
    assert discard_many(wanted) == 7 * PAGE
    assert (gone(other), gone(region)) == (set(range(5)), {7, 8})
    other.close()


def test_what_cannot_be_done_is_an_error_even_if_some_of_it_was(region: Region) -> None:
    wanted = pieces(region, range(0, 4, 2))
    # A page of another kind has taken the place of one that the file had lost.
    with mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private:
        away = ctypes.addressof(ctypes.c_char.from_buffer(private)) - region.address
        with pytest.raises(OSError, match="8192 of 12288"):
            discard_many([*wanted, Piece(region, away, PAGE)])
    assert gone(region) == {0, 2}


def test_a_kernel_that_cannot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_discard_many() is discard_many
    # 6.12 and older refuse this advice in a list.
    monkeypatch.setattr(reclaim_many, "_MADV_REMOVE", 9999)
    can_discard_many.cache_clear()
    with none_left_open():
        assert best_discard_many() is None
    can_discard_many.cache_clear()

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.memory.map import Piece, Region, RegionLayout
from ballast.memory.reclaim import discard, punch_hole, whole_host_pages
from support.fds import memory_file

PAGE = 4096
HUGE = 2 << 20
PAGES = 16


def region_of(size: int, *, offset: int = 0, host_page_bytes: int = PAGE) -> Region:
    """Map part of a file whose every byte is written; `host_page_bytes` plays a hugetlbfs."""
    fd = memory_file(offset + size)
    os.pwrite(fd, b"\xa5" * (offset + size), 0)
    region = Region(RegionLayout(0, size, 0, offset), fd)
    region.host_page_bytes = host_page_bytes
    return region


@pytest.fixture
def region() -> Iterator[Region]:
    region = region_of(PAGES * PAGE, offset=2 * PAGE)
    yield region
    region.close()


def resident(region: Region) -> int:
    return os.fstat(region.fd).st_blocks * 512


def test_exactly_the_pages_of_the_piece_go(region: Region) -> None:
    assert discard(Piece(region, 3 * PAGE, 2 * PAGE)) == 2 * PAGE
    assert resident(region) == (PAGES + 2 - 2) * PAGE
    assert bytes(region.view[: 3 * PAGE]) == b"\xa5" * 3 * PAGE
    assert bytes(region.view[3 * PAGE : 5 * PAGE]) == bytes(2 * PAGE)
    assert bytes(region.view[5 * PAGE :]) == b"\xa5" * (PAGES - 5) * PAGE
    assert os.fstat(region.fd).st_size == (PAGES + 2) * PAGE


@pytest.mark.parametrize(
    ("offset", "length", "kept"),
    [
        (1, PAGE, PAGES),
        (PAGE - 1, PAGE, PAGES),
        (1, 2 * PAGE, PAGES - 1),
        (PAGE, 2 * PAGE - 1, PAGES - 1),
        (0, PAGES * PAGE, 0),
        (5, 0, PAGES),
    ],
)
def test_rounding_is_inwards(region: Region, offset: int, length: int, kept: int) -> None:
    given_back = discard(Piece(region, offset, length))
    assert given_back == (PAGES - kept) * PAGE
    assert resident(region) == (kept + 2) * PAGE


@given(
    offset=st.integers(0, 8 * HUGE),
    length=st.integers(0, 8 * HUGE),
    page=st.sampled_from([PAGE, 1 << 16, HUGE]),
    skew=st.integers(0, 600),
)
def test_whole_host_pages_are_as_many_as_fit_and_none_sticks_out(
    offset: int, length: int, page: int, skew: int
) -> None:
    region = region_of(PAGE, offset=skew * PAGE, host_page_bytes=page)
    region.close()
    start = skew * PAGE + offset
    first, size = whole_host_pages(Piece(region, offset, length))
    assert first % page == size % page == 0
    if size:
        assert start <= first < start + page
        assert start + length - page < first + size <= start + length
    else:
        assert length < 2 * page


def test_larger_host_pages_go_whole_or_not_at_all() -> None:
    region = region_of(3 * HUGE, offset=HUGE, host_page_bytes=HUGE)
    try:
        assert discard(Piece(region, PAGE, HUGE)) == 0
        assert discard(Piece(region, HUGE - PAGE, HUGE + PAGE)) == HUGE
        assert resident(region) == 3 * HUGE
        assert bytes(region.view[:HUGE]) == b"\xa5" * HUGE
        assert bytes(region.view[HUGE : 2 * HUGE]) == bytes(HUGE)
    finally:
        region.close()


def test_a_refusal_of_the_kernel_is_an_os_error() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="seek") as caught:
            punch_hole(writing, 0, PAGE)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(reading)
        os.close(writing)

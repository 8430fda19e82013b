from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.memory.map import ADDRESS_LIMIT, MAX_REGIONS, MemoryMap, Region, RegionLayout
from ballast_protocol.errors import AddressError, MalformedError
from support.driver import GuestRam, RamBlock
from support.fds import memory_file, none_left_open
from support.memory import mapped

PAGE = mmap.PAGESIZE
LOW, HIGH, FAR = 0, 0x100000, 1 << 32
SIZE = 0x100000


@pytest.fixture
def file() -> Iterator[int]:
    fd = memory_file(4 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """Return two adjacent blocks, and after a hole a third one inside a larger file."""
    blocks = (
        RamBlock(LOW, SIZE),
        RamBlock(HIGH, SIZE),
        RamBlock(FAR, SIZE, user_address=0x1000, file_offset=2 * PAGE),
    )
    with GuestRam.of(*blocks) as ram:
        yield ram


@pytest.fixture
def memory(ram: GuestRam) -> Iterator[MemoryMap]:
    with mapped(ram) as memory:
        yield memory


def layout(
    guest: int = 0, size: int = PAGE, user: int = 0x7F0000000000, offset: int = 0
) -> RegionLayout:
    return RegionLayout(guest, size, user, offset)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (layout(size=5 * PAGE), "ends at byte"),
        (layout(size=PAGE, offset=4 * PAGE), "ends at byte"),
        (layout(size=PAGE, offset=(1 << 64) - PAGE), "ends at byte"),
        (layout(size=0), "does not fit"),
        (layout(guest=ADDRESS_LIMIT), "does not fit"),
        (layout(guest=(1 << 64) - PAGE), "does not fit"),
        (layout(size=ADDRESS_LIMIT + PAGE), "does not fit"),
        (layout(user=(1 << 64) - PAGE + 1), "wraps"),
        (layout(guest=PAGE // 2), "not page aligned"),
        (layout(size=PAGE + 512), "not page aligned"),
        (layout(offset=512), "not page aligned"),
    ],
)
def test_a_region_that_no_front_end_sends_is_refused_and_its_fd_stays_with_the_caller(
    file: int, bad: RegionLayout, reason: str
) -> None:
    with none_left_open(), pytest.raises(MalformedError, match=reason):
        Region(bad, file)
    os.fstat(file)


def test_a_descriptor_that_is_no_memory_is_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(MalformedError, match="of a file of 0 bytes"):
            Region(layout(), reading)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_file_that_may_not_be_written_is_refused() -> None:
    with open(sys.executable, "rb") as program, pytest.raises(MalformedError, match="be mapped"):
        Region(layout(), program.fileno())


def test_a_region_shares_its_bytes_with_the_file_and_closes_everything(file: int) -> None:
    with none_left_open():
        region = Region(layout(size=2 * PAGE, offset=PAGE), os.dup(file))
        os.pwrite(file, b"guest", PAGE)
        assert bytes(region.view[:5]) == b"guest"
        region.view[PAGE : PAGE + 4] = b"host"
        assert os.pread(file, 4, 2 * PAGE) == b"host"
        assert region.host_page_bytes == PAGE
        region.close()


def test_regions_are_kept_in_order_and_every_change_is_a_new_map(memory: MemoryMap) -> None:
    assert [region.layout.guest_address for region in memory.regions] == [LOW, HIGH, FAR]
    assert memory.sequence == 3
    smaller, taken = memory.without_region(HIGH, SIZE)
    assert (taken.layout.guest_address, smaller.sequence) == (HIGH, 4)
    assert [region.layout.guest_address for region in smaller.regions] == [LOW, FAR]
    assert len(memory.regions) == 3


@pytest.mark.parametrize(
    ("guest", "size"),
    [(LOW, PAGE), (HIGH - PAGE, 2 * PAGE), (HIGH + SIZE - PAGE, PAGE), (FAR - PAGE, SIZE * 2)],
)
def test_an_overlap_is_refused(memory: MemoryMap, guest: int, size: int) -> None:
    fd = memory_file(size)
    region = Region(layout(guest, size), fd)
    try:
        with pytest.raises(MalformedError, match="overlaps"):
            memory.with_region(region)
    finally:
        region.close()


@pytest.mark.parametrize("guest", [HIGH + SIZE, FAR - PAGE, FAR + SIZE])
def test_touching_is_no_overlap(memory: MemoryMap, guest: int) -> None:
    region = Region(layout(guest), memory_file(PAGE))
    try:
        assert len(memory.with_region(region).regions) == 4
    finally:
        region.close()


@pytest.mark.parametrize(("guest", "size"), [(LOW, SIZE - PAGE), (PAGE, SIZE), (1 << 40, SIZE)])
def test_only_a_region_that_is_there_can_go(memory: MemoryMap, guest: int, size: int) -> None:
    with pytest.raises(MalformedError, match="no memory region"):
        memory.without_region(guest, size)


def test_there_is_a_most_of_regions(file: int) -> None:
    memory = MemoryMap()
    try:
        for number in range(MAX_REGIONS):
            memory = memory.with_region(Region(layout(number * PAGE), os.dup(file)))
        extra = Region(layout(MAX_REGIONS * PAGE), os.dup(file))
        with pytest.raises(MalformedError, match="more than 509"):
            memory.with_region(extra)
        extra.close()
    finally:
        for region in memory.regions:
            region.close()


def spans(memory: MemoryMap, address: int, length: int) -> list[tuple[int, int]]:
    return [
        (piece.region.layout.guest_address + piece.offset, piece.length)
        for piece in memory.pieces(address, length)
    ]


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [
        (LOW, 10, [(LOW, 10)]),
        (HIGH - 4, 8, [(HIGH - 4, 4), (HIGH, 4)]),
        (HIGH + SIZE - 4, 8, [(HIGH + SIZE - 4, 4)]),
        (HIGH + SIZE, 8, []),
        (FAR - 8, 16, [(FAR, 8)]),
        (LOW, 1 << 63, [(LOW, SIZE), (HIGH, SIZE), (FAR, SIZE)]),
        ((1 << 64) - 1, 1 << 32, []),
        (LOW, 0, []),
    ],
)
def test_pieces_leave_holes_out(
    memory: MemoryMap, address: int, length: int, expected: list[tuple[int, int]]
) -> None:
    assert spans(memory, address, length) == expected


RANGE = st.tuples(
    st.one_of(st.integers(0, 3 * SIZE), st.integers(FAR - SIZE, FAR + 2 * SIZE)),
    st.integers(0, 3 * SIZE),
)


@given(st.lists(RANGE, min_size=1, max_size=20))
def test_pieces_cover_exactly_what_is_ram(ranges: list[tuple[int, int]]) -> None:
    blocks = [(LOW, LOW + 2 * SIZE), (FAR, FAR + SIZE)]
    with (
        GuestRam.of(*(RamBlock(at, SIZE) for at in (LOW, HIGH, FAR))) as ram,
        mapped(ram) as memory,
    ):
        for address, length in ranges:
            expected = sum(
                max(min(address + length, end) - max(address, start), 0) for start, end in blocks
            )
            found = spans(memory, address, length)
            assert sum(size for _, size in found) == expected
            assert found == sorted(found)
            assert all(address <= at and at + size <= address + length for at, size in found)


def test_read_crosses_adjacent_regions(ram: GuestRam, memory: MemoryMap) -> None:
    ram.write(HIGH - 3, b"abc")
    ram.write(HIGH, b"def")
    assert memory.read(HIGH - 3, 6) == b"abcdef"
    assert memory.read(HIGH - 3, 3) == b"abc"
    assert memory.read(FAR + SIZE, 0) == b""


@pytest.mark.parametrize(
    ("address", "length"),
    [(HIGH + SIZE - 2, 4), (FAR - 2, 4), (1 << 50, 1), ((1 << 64) - 1, 4096), (LOW, FAR + 8)],
)
def test_read_of_a_hole_is_an_address_error(memory: MemoryMap, address: int, length: int) -> None:
    with pytest.raises(AddressError):
        memory.read(address, length)


def test_a_structure_must_lie_inside_one_region(memory: MemoryMap) -> None:
    piece = memory.guest_piece(HIGH - 16, 16)
    assert (piece.region, piece.offset, piece.length) == (memory.regions[0], SIZE - 16, 16)
    for address, length in ((HIGH - 16, 17), (HIGH + SIZE, 1), (FAR - 1, 1)):
        with pytest.raises(AddressError, match="not inside one RAM region"):
            memory.guest_piece(address, length)


def test_front_end_addresses_have_their_own_space(memory: MemoryMap) -> None:
    piece = memory.user_piece(0x1000 + 64, 8)
    assert (piece.region, piece.offset) == (memory.regions[2], 64)
    for address, length in ((0xFFF, 1), (0x1000 + SIZE - 4, 8), (1 << 63, 1)):
        with pytest.raises(AddressError):
            memory.user_piece(address, length)


def test_a_file_that_several_regions_share_counts_once(file: int) -> None:
    memory = MemoryMap()
    for number in (0, 2):
        region = Region(layout(number * PAGE, PAGE, offset=number * PAGE), os.dup(file))
        memory = memory.with_region(region)
    assert len(memory.files()) == 1
    assert memory.backing_bytes() == 4 * PAGE
    assert memory.mapped_bytes() == 2 * PAGE
    for region in memory.regions:
        region.close()


def test_the_empty_map_has_nothing() -> None:
    empty = MemoryMap()
    assert (list(empty.pieces(0, 1 << 40)), empty.find(0), empty.files()) == ([], None, {})
    assert empty.backing_bytes() == empty.mapped_bytes() == 0

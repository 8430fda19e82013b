"""The split ring's layout, against the numbers of the specification and a slow reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import QueueError
from ballast_protocol.virtio import ring
from ballast_protocol.virtio.ring import Descriptor, DescriptorFlag, UsedElement

INDEX = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Descriptor(0x1234_5678_9ABC, 1024), "bc9a785634120000 00040000 0000 0000"),
        (
            Descriptor(0x1000, 16, DescriptorFlag.NEXT | DescriptorFlag.WRITE, 7),
            "0010000000000000 10000000 0300 0700",
        ),
        (
            Descriptor(0x2000, 512, DescriptorFlag.INDIRECT),
            "0020000000000000 00020000 0400 0000",
        ),
    ],
)
def test_descriptor_bytes(value: Descriptor, text: str) -> None:
    assert value.pack() == bytes.fromhex(text)
    assert Descriptor.unpack(bytes.fromhex(text)) == value


def test_used_element_bytes() -> None:
    assert UsedElement(5, 4096).pack() == bytes.fromhex("05000000 00100000")


# Virtio 1.3, 2.7: sizes 16N, 6 + 2N and 6 + 8N.
@pytest.mark.parametrize("size", [1, 2, 32, 128, 32768])
def test_sizes_of_the_areas(size: int) -> None:
    assert ring.descriptor_table_size(size) == 16 * size
    assert ring.avail_ring_size(size) == 6 + 2 * size
    assert ring.used_ring_size(size) == 6 + 8 * size


def test_event_fields_are_the_last_of_their_rings() -> None:
    assert ring.used_event_offset(128) == ring.avail_ring_size(128) - 2 == 260
    assert ring.avail_event_offset(128) == ring.used_ring_size(128) - 2 == 1028


@pytest.mark.parametrize(
    ("index", "slot"), [(0, 0), (127, 127), (128, 0), (0xFFFF, 127), (0x10000, 0)]
)
def test_entries_are_found_by_the_index_modulo_the_size(index: int, slot: int) -> None:
    assert ring.avail_entry_offset(index, 128) == 4 + 2 * slot
    assert ring.used_entry_offset(index, 128) == 4 + 8 * slot


@pytest.mark.parametrize("size", [1, 2, 64, 32768])
def test_good_queue_sizes(size: int) -> None:
    ring.check_queue_size(size)


@pytest.mark.parametrize("size", [-2, 0, 3, 127, 32769, 65536, 1 << 31])
def test_bad_queue_sizes(size: int) -> None:
    with pytest.raises(QueueError, match=f"queue of {size} entries"):
        ring.check_queue_size(size)


def test_alignment() -> None:
    ring.check_alignment(16, 2, 4)
    for areas, name in (
        ((8, 2, 4), "descriptor table"),
        ((16, 1, 4), "available ring"),
        ((16, 2, 2), "used ring"),
    ):
        with pytest.raises(QueueError, match=name):
            ring.check_alignment(*areas)


@given(old=INDEX, count=st.integers(0, 0xFFFF))
def test_pending_counts_across_the_wrap(old: int, count: int) -> None:
    assert ring.pending((old + count) & 0xFFFF, old) == count


@given(old=INDEX, count=st.integers(0, 300), event=INDEX)
def test_need_event_is_whether_the_entry_is_among_those_added(
    old: int, count: int, event: int
) -> None:
    added = {(old + step) & 0xFFFF for step in range(count)}
    assert ring.need_event(event, (old + count) & 0xFFFF, old) == (event in added)


@given(old=INDEX, count=st.integers(0, 300), event=INDEX, laps=st.integers(0, 3))
def test_need_event_takes_free_running_indices_too(
    old: int, count: int, event: int, laps: int
) -> None:
    far = old + laps * 0x10000
    assert ring.need_event(event, far + count, far) == ring.need_event(event, old + count, old)

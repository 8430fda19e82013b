"""The fake driver itself: what it puts into memory, and when it would kick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio import ring
from ballast_protocol.virtio.ring import Descriptor, DescriptorFlag, UsedElement
from support.driver import DriverQueue, GuestRam, RamBlock, Segment

SIZE = 1 << 21


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    blocks = RamBlock(0, SIZE), RamBlock(1 << 32, SIZE, user_address=0x1000, file_offset=8192)
    with GuestRam.of(*blocks) as ram:
        yield ram


def use(queue: DriverQueue, head: int, length: int = 0) -> None:
    """Play the device: return one chain."""
    index = queue.ram.read_u16(queue.used + ring.INDEX_OFFSET)
    place = queue.used + ring.used_entry_offset(index, queue.size)
    queue.ram.write(place, UsedElement(head, length).pack())
    queue.ram.write_u16(queue.used + ring.INDEX_OFFSET, index + 1)


def descriptor(queue: DriverQueue, index: int) -> Descriptor:
    return Descriptor.unpack(queue.ram.read(queue.descriptors + 16 * index, 16))


def test_regions_are_where_they_were_asked_for(ram: GuestRam) -> None:
    ram.write((1 << 32) + 5, b"hello")
    assert ram.read((1 << 32) + 5, 5) == b"hello"
    assert ram.user_address(0x3000) == 0x7F00_0000_3000
    assert ram.user_address((1 << 32) + 0x10) == 0x1010
    assert [item.region.mmap_offset for item in ram.regions] == [0, 8192]
    with pytest.raises(InternalError, match="not in the test's guest RAM"):
        ram.read(SIZE - 1, 2)


def test_resident_bytes_follow_what_is_touched(ram: GuestRam) -> None:
    assert ram.resident_bytes() == 0
    ram.write(0x10000, b"x")
    assert ram.resident_bytes() == 4096
    ram.fill()
    assert ram.resident_bytes() == 2 * SIZE
    assert ram.read(SIZE - 2, 2) == b"\xa5\xa5"


def test_a_chain_in_the_table(ram: GuestRam) -> None:
    queue = DriverQueue(ram, 8)
    head = queue.add([Segment(0x1000, 4)], [Segment(0x2000, 8), Segment(0x3000, 16)])
    first = descriptor(queue, head)
    second = descriptor(queue, first.next)
    third = descriptor(queue, second.next)
    write = DescriptorFlag.WRITE
    assert first == Descriptor(0x1000, 4, DescriptorFlag.NEXT, first.next)
    assert second == Descriptor(0x2000, 8, DescriptorFlag.NEXT | write, second.next)
    assert third == Descriptor(0x3000, 16, write, 0)
    assert ram.read_u16(queue.avail + 2) == 1
    assert ram.read_u16(queue.avail + 4) == head


def test_an_indirect_chain_takes_one_entry(ram: GuestRam) -> None:
    queue = DriverQueue(ram, 2)
    head = queue.add(into=[Segment(0x200000 * i, 4096) for i in range(32)], indirect=True)
    outer = descriptor(queue, head)
    assert (outer.length, outer.flags) == (512, DescriptorFlag.INDIRECT)
    table = list(Descriptor.LAYOUT.iter_unpack(ram.read(outer.address, 512)))
    assert table[0] == (0, 4096, DescriptorFlag.NEXT | DescriptorFlag.WRITE, 1)
    assert table[31] == (31 * 0x200000, 4096, DescriptorFlag.WRITE, 0)


def test_buffers_come_back_and_descriptors_are_reused(ram: GuestRam) -> None:
    queue = DriverQueue(ram, 4, event_idx=True, start_index=0xFFFE)
    for turn in range(10):
        heads = [queue.add_out(bytes([turn, i])) for i in range(4)]
        with pytest.raises(InternalError, match="0 are free"):
            queue.add(out=[Segment(0, 1)])
        for head in reversed(heads):
            assert ram.read(queue.slot(head).address, 1) == bytes([turn])
            use(queue, head, 3)
        assert queue.used_waiting == 4
        assert queue.collect() == [UsedElement(head, 3) for head in reversed(heads)]
        assert queue.in_flight == 0


def test_a_head_that_the_device_did_not_have_is_noticed(ram: GuestRam) -> None:
    queue = DriverQueue(ram, 4)
    use(queue, 2)
    with pytest.raises(InternalError, match="returned 2"):
        queue.collect()


def test_kicks_without_event_idx_follow_the_devices_flag(ram: GuestRam) -> None:
    queue = DriverQueue(ram, 4)
    assert not queue.should_kick()
    queue.add_in(64)
    assert queue.should_kick()
    assert not queue.should_kick()
    ram.write_u16(queue.used, ring.UsedFlag.NO_NOTIFY)
    queue.add_in(64)
    assert not queue.should_kick()


@pytest.mark.parametrize("start", [0, 0xFFFF])
def test_kicks_with_event_idx_follow_avail_event(ram: GuestRam, start: int) -> None:
    queue = DriverQueue(ram, 8, event_idx=True, start_index=start)
    event = queue.used + ring.avail_event_offset(8)
    queue.add_in(64)
    assert queue.should_kick()
    queue.add_in(64)
    assert not queue.should_kick()
    ram.write_u16(event, start + 3)
    queue.add_in(64)
    assert not queue.should_kick()
    queue.add_in(64)
    assert queue.should_kick()


def test_interrupt_wishes(ram: GuestRam) -> None:
    flags = DriverQueue(ram, 4)
    flags.disable_interrupts()
    assert ram.read_u16(flags.avail) == ring.AvailFlag.NO_INTERRUPT
    flags.enable_interrupts()
    assert ram.read_u16(flags.avail) == 0
    events = DriverQueue(ram, 4, event_idx=True)
    place = events.avail + ring.used_event_offset(4)
    events.disable_interrupts()
    assert ram.read_u16(place) == 0x8000
    events.call_at(3)
    assert ram.read_u16(place) == 2
    events.enable_interrupts()
    use(events, events.add_in(1))
    events.collect()
    assert ram.read_u16(place) == 1

"""The device's side of a split ring against the fake driver, over the same real memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.memory.map import MemoryMap
from ballast.queue.split import SplitQueue
from ballast_protocol.errors import AddressError, GuestError, QueueError
from ballast_protocol.virtio import ring
from ballast_protocol.virtio.ring import Descriptor, DescriptorFlag, UsedElement
from support.driver import DriverQueue, GuestRam, RamBlock, Segment
from support.memory import attached, device_queue, mapped

RAM_BYTES = 4 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam.of(RamBlock(0, RAM_BYTES)) as ram:
        yield ram


@pytest.fixture
def memory(ram: GuestRam) -> Iterator[MemoryMap]:
    with mapped(ram) as memory:
        yield memory


class Pair:
    """Both sides of one queue."""

    def __init__(self, memory: MemoryMap, driver: DriverQueue, stack: ExitStack) -> None:
        self.driver = driver
        self.device = stack.enter_context(attached(device_queue(driver), memory))
        self.memory = memory

    def serve(self) -> list[bytes]:
        """Take everything and return it to the driver; return what was read."""
        found = []
        while (head := self.device.pop_head()) is not None:
            found.append(self.device.chain(head).read(self.memory, 4096))
            self.device.add_used(head)
        return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(ram: GuestRam, memory: MemoryMap, stack: ExitStack) -> Pair:
    return Pair(memory, DriverQueue(ram, 8), stack)


@pytest.fixture
def event_pair(ram: GuestRam, memory: MemoryMap, stack: ExitStack) -> Pair:
    return Pair(memory, DriverQueue(ram, 8, event_idx=True), stack)


def test_buffers_come_in_order_and_go_back_only_when_published(pair: Pair) -> None:
    heads = [pair.driver.add_out(text) for text in (b"first", b"second")]
    assert pair.device.available() == 2
    assert pair.serve() == [b"first", b"second"]
    assert pair.driver.used_waiting == 0
    assert pair.device.publish()
    assert pair.driver.collect() == [UsedElement(head, 0) for head in heads]
    assert pair.device.pop_head() is None
    assert not pair.device.publish()


def test_the_length_written_is_passed_on(pair: Pair) -> None:
    head = pair.driver.add_in(64)
    assert pair.device.pop_head() == head
    assert [buffer.length for buffer in pair.device.chain(head).writable] == [64]
    pair.device.add_used(head, 12)
    pair.device.publish()
    assert pair.driver.collect() == [UsedElement(head, 12)]


def test_indirect_chains_from_a_driver(pair: Pair) -> None:
    at = pair.driver.ram.allocate(32)
    pair.driver.ram.write(at, b"abcdefgh")
    head = pair.driver.add(
        out=[Segment(at, 4), Segment(at + 4, 4)], into=[Segment(at + 16, 8)], indirect=True
    )
    assert pair.device.pop_head() == head
    chain = pair.device.chain(head)
    assert chain.read(pair.memory, 100) == b"abcdefgh"
    assert len(chain.writable) == 1


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("size", [1, 8])
def test_indices_wrap(ram: GuestRam, memory: MemoryMap, event_idx: bool, size: int) -> None:
    driver = DriverQueue(ram, size, event_idx=event_idx, start_index=65533)
    with ExitStack() as stack:
        pair = Pair(memory, driver, stack)
        for round_number in range(12):
            text = str(round_number).encode()
            driver.add_out(text)
            assert driver.should_kick()
            assert pair.serve() == [text]
            assert pair.device.publish()
            assert not pair.device.enable_notifications()
            assert len(driver.collect()) == 1
        assert pair.device.state.next_avail == pair.device.state.next_used == 9


@given(
    start=st.integers(0, 65535),
    batches=st.lists(st.integers(1, 8), max_size=30),
    event_idx=st.booleans(),
)
def test_nothing_is_lost_or_doubled(start: int, batches: list[int], event_idx: bool) -> None:
    with GuestRam.of(RamBlock(0, 1 << 18)) as ram, mapped(ram) as memory, ExitStack() as stack:
        driver = DriverQueue(ram, 8, event_idx=event_idx, start_index=start)
        pair = Pair(memory, driver, stack)
        pair.device.enable_notifications()
        sent = 0
        for batch in batches:
            texts = [str(sent + number).encode() for number in range(batch)]
            heads = [driver.add_out(text) for text in texts]
            sent += batch
            assert driver.should_kick()
            assert pair.serve() == texts
            assert pair.device.publish()
            assert not pair.device.enable_notifications()
            assert [used.head for used in driver.collect()] == heads


def test_without_event_idx_the_driver_s_flag_counts(pair: Pair) -> None:
    pair.driver.disable_interrupts()
    pair.driver.add_out(b"x")
    pair.serve()
    assert not pair.device.publish()
    pair.driver.enable_interrupts()
    pair.driver.collect()
    pair.driver.add_out(b"x")
    pair.serve()
    assert pair.device.publish()


def test_with_event_idx_the_notification_comes_when_it_was_asked_for(event_pair: Pair) -> None:
    driver, device = event_pair.driver, event_pair.device
    driver.add_out(b"x")
    event_pair.serve()
    assert device.publish()  # the first one after attaching always notifies
    driver.collect()
    driver.call_at(3)
    notified = []
    for _ in range(4):
        driver.add_out(b"x")
        event_pair.serve()
        notified.append(device.publish())
    assert notified == [False, False, True, False]


def test_with_event_idx_kicks_are_asked_for_only_when_waiting(event_pair: Pair) -> None:
    driver, device = event_pair.driver, event_pair.device
    device.enable_notifications()
    driver.add_out(b"x")
    assert driver.should_kick()
    driver.add_out(b"x")
    assert not driver.should_kick()
    event_pair.serve()
    assert not device.enable_notifications()
    driver.add_out(b"x")
    assert driver.should_kick()


def test_a_buffer_that_slipped_in_before_the_request_for_a_kick_is_seen(event_pair: Pair) -> None:
    event_pair.serve()
    event_pair.driver.add_out(b"x")
    assert event_pair.device.enable_notifications()


@pytest.mark.parametrize("jump", [9, 1000, 65535])
def test_an_available_index_that_jumps(pair: Pair, jump: int) -> None:
    pair.driver.write_avail_index(jump)
    for action in (pair.device.available, pair.device.pop_head, pair.device.enable_notifications):
        with pytest.raises(QueueError, match="chains claimed"):
            action()


def test_an_available_index_that_goes_backwards(pair: Pair) -> None:
    pair.driver.add_out(b"x")
    pair.serve()
    pair.driver.write_avail_index(0)
    with pytest.raises(QueueError, match="65535 chains"):
        pair.device.pop_head()


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_a_head_that_is_not_in_the_table(pair: Pair, head: int) -> None:
    pair.driver.publish(head)
    with pytest.raises(QueueError, match=f"chain head {head}"):
        pair.device.pop_head()


def test_a_used_index_from_an_earlier_life_is_adopted(ram: GuestRam, memory: MemoryMap) -> None:
    driver = DriverQueue(ram, 8, start_index=40000)
    queue = device_queue(driver)
    assert queue.state.next_used == 0
    with attached(queue, memory):
        assert queue.state.next_used == 40000
        head = driver.add_out(b"x")
        assert queue.pop_head() == head
        queue.add_used(head)
        queue.publish()
        assert driver.collect() == [UsedElement(head, 0)]


def test_positions_survive_a_new_map(ram: GuestRam) -> None:
    driver = DriverQueue(ram, 8)
    queue = device_queue(driver)
    for text in (b"one", b"two", b"three"):
        with mapped(ram) as memory:
            queue.attach(memory)
            driver.add_out(text)
            head = queue.pop_head()
            assert head is not None
            assert queue.chain(head).read(memory, 100) == text
            queue.add_used(head)
            assert queue.publish()
            queue.detach()
            assert not queue.is_attached
    assert len(driver.collect()) == 3


@pytest.mark.parametrize("size", [0, 3, 65536, 100])
def test_a_size_that_no_queue_has(ram: GuestRam, memory: MemoryMap, size: int) -> None:
    queue = device_queue(DriverQueue(ram, 8))
    queue.state.size = size
    with pytest.raises(QueueError, match="not a power of two"):
        queue.attach(memory)
    assert not queue.is_attached


@pytest.mark.parametrize(
    ("field", "by"), [("desc_address", 8), ("avail_address", 1), ("used_address", 2)]
)
def test_an_area_that_is_not_aligned(ram: GuestRam, memory: MemoryMap, field: str, by: int) -> None:
    queue = device_queue(DriverQueue(ram, 8))
    setattr(queue.state, field, getattr(queue.state, field) + by)
    with pytest.raises(QueueError, match="not aligned"):
        queue.attach(memory)


@pytest.mark.parametrize("field", ["desc_address", "avail_address", "used_address"])
@pytest.mark.parametrize("address", [RAM_BYTES - 16, RAM_BYTES, 1 << 48, (1 << 64) - 16])
def test_an_area_outside_ram(ram: GuestRam, memory: MemoryMap, field: str, address: int) -> None:
    queue = device_queue(DriverQueue(ram, 8))
    setattr(queue.state, field, address)
    with pytest.raises(AddressError):
        queue.attach(memory)
    assert not queue.is_attached


def test_an_area_that_ends_with_its_region_is_fine(ram: GuestRam, memory: MemoryMap) -> None:
    queue = device_queue(DriverQueue(ram, 8))
    queue.state.used_address = (RAM_BYTES - ring.used_ring_size(8)) & ~3
    queue.attach(memory)
    queue.detach()


def test_detaching_twice_and_before_attaching_does_nothing(ram: GuestRam) -> None:
    queue = device_queue(DriverQueue(ram, 8))
    queue.detach()
    with mapped(ram) as memory:
        queue.attach(memory)
        queue.attach(memory)
        queue.detach()
        queue.detach()


def serve_hostile(queue: SplitQueue, memory: MemoryMap) -> None:
    for _ in range(16):
        head = queue.pop_head()
        if head is None:
            queue.publish()
            if not queue.enable_notifications():
                return
            continue
        with suppress(GuestError):
            queue.chain(head).read(memory, 4096)
        queue.add_used(head)
    queue.publish()


FLAGS = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)).map(DescriptorFlag)
NUMBER = st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF))
DESCRIPTOR = st.builds(
    Descriptor,
    st.one_of(st.integers(0, 1 << 18), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
    FLAGS,
    NUMBER,
)


@given(
    descriptors=st.lists(DESCRIPTOR, min_size=8, max_size=8),
    heads=st.lists(NUMBER, max_size=8),
    index=st.none() | st.integers(0, 0xFFFF),
    used=st.integers(0, 0xFFFF),
    event_idx=st.booleans(),
)
def test_any_ring_works_or_is_a_guest_error(
    descriptors: list[Descriptor], heads: list[int], index: int | None, used: int, event_idx: bool
) -> None:
    with GuestRam.of(RamBlock(0, 1 << 18)) as ram, mapped(ram) as memory:
        driver = DriverQueue(ram, 8, event_idx=event_idx)
        for number, descriptor in enumerate(descriptors):
            driver.write_descriptor(number, descriptor)
        for head in heads:
            driver.publish(head)
        if index is not None:
            driver.write_avail_index(index)
        ram.write_u16(driver.used + ring.INDEX_OFFSET, used)
        with attached(device_queue(driver), memory) as queue:
            try:
                serve_hostile(queue, memory)
            except GuestError:
                return
            assert queue.state.next_avail == driver.avail_index or index is not None
            assert queue.state.next_used == (used + queue.state.next_avail) & 0xFFFF

"""Descriptor chains, honest and hostile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.memory.map import MemoryMap
from ballast.queue.chain import MAX_CHAIN, Buffer, Chain, walk
from ballast_protocol.errors import AddressError, GuestError, QueueError
from ballast_protocol.virtio.ring import DESCRIPTOR_SIZE, Descriptor, DescriptorFlag
from support.driver import GuestRam, RamBlock
from support.memory import mapped

RAM_BYTES = 1 << 20
TABLE = 0x10000
NEXT, WRITE, INDIRECT = DescriptorFlag.NEXT, DescriptorFlag.WRITE, DescriptorFlag.INDIRECT


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam.of(RamBlock(0, RAM_BYTES), RamBlock(RAM_BYTES, RAM_BYTES)) as ram:
        yield ram


@pytest.fixture
def memory(ram: GuestRam) -> Iterator[MemoryMap]:
    with mapped(ram) as memory:
        yield memory


def table(*descriptors: Descriptor, size: int = 8) -> memoryview:
    packed = b"".join(each.pack() for each in descriptors)
    return memoryview(packed.ljust(size * DESCRIPTOR_SIZE, b"\0"))


def indirect_table(ram: GuestRam, *descriptors: Descriptor) -> Descriptor:
    """Put a table into guest memory and return the descriptor that points to it."""
    packed = b"".join(each.pack() for each in descriptors)
    ram.write(TABLE, packed)
    return Descriptor(TABLE, len(packed), INDIRECT)


def follow(
    memory: MemoryMap, entries: memoryview, head: int = 0, *, indirect: bool = True
) -> Chain:
    size = len(entries) // DESCRIPTOR_SIZE
    return walk(memory, entries, head, size, indirect_allowed=indirect)


def test_readable_parts_and_then_writable_ones(memory: MemoryMap) -> None:
    entries = table(
        Descriptor(0x3000, 8, WRITE, 0),
        Descriptor(0x1000, 4, NEXT, 3),
        Descriptor(0, 0),
        Descriptor(0x2000, 6, NEXT | WRITE, 0),
    )
    chain = follow(memory, entries, head=1)
    assert chain == Chain(1, (Buffer(0x1000, 4),), (Buffer(0x2000, 6), Buffer(0x3000, 8)))
    assert chain.readable_bytes == 4


@pytest.mark.parametrize(
    "entries",
    [
        table(Descriptor(0, 4, NEXT, 0)),
        table(Descriptor(0, 4, NEXT, 1), Descriptor(0, 4, NEXT, 0)),
        table(Descriptor(0, 4, NEXT, 1), Descriptor(0, 4, NEXT, 2), Descriptor(0, 4, NEXT, 1)),
    ],
)
def test_a_loop_ends(memory: MemoryMap, entries: memoryview) -> None:
    with pytest.raises(QueueError, match="loops"):
        follow(memory, entries)


def test_a_chain_may_use_the_whole_table(memory: MemoryMap) -> None:
    entries = [Descriptor(0, 4, NEXT, number + 1) for number in range(7)]
    assert len(follow(memory, table(*entries, Descriptor(0, 4))).readable) == 8


@pytest.mark.parametrize("following", [8, 0xFFFF])
def test_next_beyond_the_table(memory: MemoryMap, following: int) -> None:
    with pytest.raises(QueueError, match="beyond 8"):
        follow(memory, table(Descriptor(0, 4, NEXT, following)))


def test_readable_after_writable(memory: MemoryMap) -> None:
    with pytest.raises(QueueError, match="follows a device-writable one"):
        follow(memory, table(Descriptor(0, 4, NEXT | WRITE, 1), Descriptor(0, 4)))


def test_an_indirect_table_is_followed(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(
        ram, Descriptor(0x1000, 4, NEXT, 2), Descriptor(0, 0), Descriptor(0x2000, 8, WRITE)
    )
    assert follow(memory, table(pointer)) == Chain(0, (Buffer(0x1000, 4),), (Buffer(0x2000, 8),))


def test_an_indirect_table_may_end_a_chain_of_direct_ones(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(ram, Descriptor(0x2000, 8, WRITE))
    chain = follow(memory, table(Descriptor(0x1000, 4, NEXT, 1), pointer))
    assert (len(chain.readable), len(chain.writable)) == (1, 1)


def test_an_indirect_table_may_be_longer_than_the_queue(ram: GuestRam, memory: MemoryMap) -> None:
    entries = [Descriptor(0, 4, NEXT, number + 1) for number in range(MAX_CHAIN - 1)]
    pointer = indirect_table(ram, *entries, Descriptor(0, 4))
    assert len(follow(memory, table(pointer, size=2)).readable) == MAX_CHAIN


def test_indirect_without_having_been_negotiated(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(ram, Descriptor(0x1000, 4))
    with pytest.raises(QueueError, match="must not be indirect"):
        follow(memory, table(pointer), indirect=False)


def test_indirect_inside_indirect(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(ram, Descriptor(TABLE, DESCRIPTOR_SIZE, INDIRECT))
    with pytest.raises(QueueError, match="must not be indirect"):
        follow(memory, table(pointer))


def test_indirect_and_next_together(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(ram, Descriptor(0x1000, 4))
    both = Descriptor(pointer.address, pointer.length, INDIRECT | NEXT, 1)
    with pytest.raises(QueueError, match="must not be indirect"):
        follow(memory, table(both))


@pytest.mark.parametrize(
    "length", [0, 1, DESCRIPTOR_SIZE + 1, DESCRIPTOR_SIZE * (MAX_CHAIN + 1), 0xFFFFFFF0]
)
def test_an_indirect_table_of_an_impossible_length(memory: MemoryMap, length: int) -> None:
    with pytest.raises(QueueError, match="indirect table of"):
        follow(memory, table(Descriptor(TABLE, length, INDIRECT)))


@pytest.mark.parametrize("address", [2 * RAM_BYTES - 8, 1 << 40, (1 << 64) - 8])
def test_an_indirect_table_that_is_not_ram(memory: MemoryMap, address: int) -> None:
    with pytest.raises(AddressError):
        follow(memory, table(Descriptor(address, DESCRIPTOR_SIZE, INDIRECT)))


def test_a_loop_inside_an_indirect_table(ram: GuestRam, memory: MemoryMap) -> None:
    pointer = indirect_table(ram, Descriptor(0, 4, NEXT, 1), Descriptor(0, 4, NEXT, 0))
    with pytest.raises(QueueError, match="loops"):
        follow(memory, table(pointer))


def test_the_bytes_of_a_chain_are_copied_up_to_a_limit(ram: GuestRam, memory: MemoryMap) -> None:
    ram.write(0x1000, b"abcd")
    ram.write(RAM_BYTES - 2, b"ef")
    ram.write(RAM_BYTES, b"gh")
    split = Chain(0, (Buffer(0x1000, 4), Buffer(RAM_BYTES - 2, 4)), ())
    assert split.read(memory, 100) == b"abcdefgh"
    assert split.read(memory, 5) == b"abcde"
    assert split.read(memory, 4) == b"abcd"
    data = Chain(0, (Buffer(0x1000, 4),), ()).read(memory, 100)
    ram.write(0x1000, b"XXXX")
    assert data == b"abcd"


def test_a_chain_that_only_writes_reads_as_nothing(memory: MemoryMap) -> None:
    assert Chain(0, (), (Buffer(0, 100),)).read(memory, 100) == b""


def test_a_part_that_is_not_ram(memory: MemoryMap) -> None:
    with pytest.raises(AddressError):
        Chain(0, (Buffer(0x1000, 4), Buffer(1 << 40, 4)), ()).read(memory, 100)
    with pytest.raises(AddressError):
        Chain(0, (Buffer(2 * RAM_BYTES - 1, 2),), ()).read(memory, 100)


ADDRESS = st.one_of(
    st.sampled_from([0, TABLE, TABLE + 16, RAM_BYTES - 8, 2 * RAM_BYTES - 16, 1 << 63]),
    st.integers(0, (1 << 64) - 1),
)
LENGTH = st.one_of(st.sampled_from([0, 4, 16, 32, 48, 128, 1 << 14]), st.integers(0, (1 << 32) - 1))
DESCRIPTOR = st.builds(
    Descriptor,
    ADDRESS,
    LENGTH,
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)).map(DescriptorFlag),
    st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
)
DESCRIPTORS = st.lists(DESCRIPTOR, min_size=8, max_size=8)


@given(direct=DESCRIPTORS, inner=DESCRIPTORS, head=st.integers(0, 7), allowed=st.booleans())
def test_any_table_makes_a_chain_or_a_guest_error(
    direct: list[Descriptor], inner: list[Descriptor], head: int, allowed: bool
) -> None:
    with GuestRam.of(RamBlock(0, RAM_BYTES), RamBlock(RAM_BYTES, RAM_BYTES)) as ram:
        indirect_table(ram, *inner)
        with mapped(ram) as memory:
            try:
                chain = follow(memory, table(*direct), head, indirect=allowed)
                data = chain.read(memory, 1 << 16)
            except GuestError:
                return
            assert chain.head == head
            assert 0 < len(chain.readable) + len(chain.writable) <= 8 + MAX_CHAIN
            assert len(data) == min(chain.readable_bytes, 1 << 16)

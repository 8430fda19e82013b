"""The guest's half, played by hand: RAM in memfds and the driver's side of split virtqueues.

    with GuestRam.of(RamBlock(guest_address=0, size=1 << 24)) as ram:
        queue = DriverQueue(ram, 128, event_idx=True)
        head = queue.add_out(struct.pack("<256I", *pfns))
        if queue.should_kick(): ...
        assert [used.head for used in queue.collect()] == [head]

Nothing here waits: the caller decides how it learns that the device has moved.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from ballast_protocol.errors import InternalError
from ballast_protocol.vhost_user.message import MemoryRegion
from ballast_protocol.virtio import ring
from ballast_protocol.virtio.ring import Descriptor, DescriptorFlag, UsedElement

PAGE_SIZE = 4096
USER_ADDRESS_BASE = 0x7F00_0000_0000
"""Where the pretended front-end has mapped the guest's RAM, unless a block says otherwise."""


@dataclass(frozen=True)
class RamBlock:
    """Where one piece of RAM is to be.

    Attributes:
        guest_address: Its guest physical address.
        size: Bytes.
        user_address: Its address in the front-end; by default 0x7f0000000000 + `guest_address`.
        file_offset: Where it starts in its memfd.
        is_huge: It is made of huge pages, which the host has to have.
    """

    guest_address: int
    size: int
    user_address: int | None = None
    file_offset: int = 0
    is_huge: bool = False


@dataclass
class RamRegion:
    """A piece of RAM that exists: its region as it is announced, its fd and its bytes."""

    region: MemoryRegion
    fd: int
    view: mmap.mmap

    def contains(self, address: int, size: int) -> bool:
        """Tell whether [address, address + size) lies wholly inside."""
        start = self.region.guest_address
        return start <= address and address + size <= start + self.region.size


class GuestRam:
    """Guest RAM on memfds, one per block, with a bump allocator for rings and buffers.

    Close it, or use it as a context manager. `allocate` never frees: a test's guest is short-lived.
    """

    def __init__(self, blocks: Iterable[RamBlock]) -> None:
        self.regions: list[RamRegion] = []
        for block in blocks:
            self.add(block)
        self._next = self.regions[0].region.guest_address + PAGE_SIZE

    @classmethod
    def of(cls, *blocks: RamBlock) -> Self:
        """Make RAM of these blocks."""
        return cls(blocks)

    def add(self, block: RamBlock) -> RamRegion:
        """Plug in one more block."""
        huge = os.MFD_HUGETLB | os.MFD_HUGE_2MB if block.is_huge else 0
        fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | huge)
        os.ftruncate(fd, block.file_offset + block.size)
        view = mmap.mmap(fd, block.size, offset=block.file_offset)
        user = block.user_address
        region = MemoryRegion(
            guest_address=block.guest_address,
            size=block.size,
            user_address=USER_ADDRESS_BASE + block.guest_address if user is None else user,
            mmap_offset=block.file_offset,
        )
        self.regions.append(RamRegion(region, fd, view))
        return self.regions[-1]

    def remove(self, ram_region: RamRegion) -> None:
        """Unplug a block and drop its memory."""
        self.regions.remove(ram_region)
        ram_region.view.close()
        os.close(ram_region.fd)

    def close(self) -> None:
        """Drop everything."""
        while self.regions:
            self.remove(self.regions[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _find(self, address: int, size: int) -> RamRegion:
        for ram_region in self.regions:
            if ram_region.contains(address, size):
                return ram_region
        raise InternalError(f"[{address:#x}, +{size:#x}) is not in the test's guest RAM")

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from guest physical `address`."""
        found = self._find(address, size)
        start = address - found.region.guest_address
        return found.view[start : start + size]

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at guest physical `address`."""
        found = self._find(address, len(data))
        start = address - found.region.guest_address
        found.view[start : start + len(data)] = data

    def fill(self, byte: int = 0xA5) -> None:
        """Touch all of the RAM, so that the host backs every page of it."""
        for ram_region in self.regions:
            for start in range(0, ram_region.region.size, 1 << 20):
                size = min(1 << 20, ram_region.region.size - start)
                ram_region.view[start : start + size] = bytes([byte]) * size

    def read_u16(self, address: int) -> int:
        """Return the little-endian 16-bit number at `address`."""
        return int.from_bytes(self.read(address, 2), "little")

    def write_u16(self, address: int, value: int) -> None:
        """Store a little-endian 16-bit number, modulo 2^16."""
        self.write(address, (value & ring.INDEX_MASK).to_bytes(2, "little"))

    def allocate(self, size: int, alignment: int = 16) -> int:
        """Take `size` fresh bytes of the first block and return their guest physical address."""
        address = -(-self._next // alignment) * alignment
        self._find(address, size)
        self._next = address + size
        return address

    def user_address(self, address: int) -> int:
        """Return the front-end's address of guest physical `address`, for SET_VRING_ADDR."""
        region = self._find(address, 1).region
        return region.user_address + address - region.guest_address

    def resident_bytes(self) -> int:
        """Return how much of the RAM the host really backs: the oracle for discards."""
        return sum(os.fstat(ram_region.fd).st_blocks * 512 for ram_region in self.regions)


class Segment(NamedTuple):
    """A piece of guest memory: guest physical address and bytes."""

    address: int
    size: int


@dataclass
class DriverQueue:
    """The driver's side of one split virtqueue.

    Attributes:
        ram: Where rings and buffers live.
        size: Entries, a power of two.
        event_idx: Whether EVENT_IDX was negotiated.
        start_index: Where the free-running indices start; near 65535 to test the wrap.
        slot_size: Bytes of the buffer that each descriptor has for `add_out` and `add_in`.
    """

    ram: GuestRam
    size: int = 128
    event_idx: bool = False
    start_index: int = 0
    slot_size: int = PAGE_SIZE
    descriptors: int = field(init=False)
    avail: int = field(init=False)
    used: int = field(init=False)

    def __post_init__(self) -> None:
        ring.check_queue_size(self.size)
        self.descriptors = self.ram.allocate(ring.descriptor_table_size(self.size), 16)
        self.avail = self.ram.allocate(ring.avail_ring_size(self.size), 2)
        self.used = self.ram.allocate(ring.used_ring_size(self.size), 4)
        self._slots = self.ram.allocate(self.slot_size * self.size, PAGE_SIZE)
        self._tables: dict[int, Segment] = {}
        self.reset(self.start_index)

    def reset(self, start_index: int = 0) -> None:
        """Begin anew, as a driver does after a device reset: rings empty, all descriptors free."""
        self._free = list(reversed(range(self.size)))
        self._chains: dict[int, list[int]] = {}
        self._avail_index = self._kicked_index = self._used_index = start_index
        for area, size in (
            (self.avail, ring.avail_ring_size(self.size)),
            (self.used, ring.used_ring_size(self.size)),
        ):
            self.ram.write(area, bytes(size))
            self.ram.write_u16(area + ring.INDEX_OFFSET, start_index)
        self.ram.write_u16(self.used + ring.avail_event_offset(self.size), start_index)
        self._interrupts = True
        self._write_used_event(start_index)

    @property
    def in_flight(self) -> int:
        """How many chains the device still has."""
        return len(self._chains)

    @property
    def avail_index(self) -> int:
        """The free-running index of the next buffer to be made available."""
        return self._avail_index & ring.INDEX_MASK

    # Making buffers available

    def add(
        self,
        out: Sequence[Segment] = (),
        into: Sequence[Segment] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Make one chain available: `out` for the device to read, then `into` for it to write.

        Returns the head, which `collect` gives back. Raises InternalError if the ring is full.
        """
        pieces = [(segment, DescriptorFlag.NONE) for segment in out]
        pieces += [(segment, DescriptorFlag.WRITE) for segment in into]
        taken = self._take(1 if indirect else len(pieces))
        if indirect:
            table = self._table_of(taken[0], len(pieces))
            self._write_chain(table.address, range(len(pieces)), pieces)
            pieces = [(table, DescriptorFlag.INDIRECT)]
        self._write_chain(self.descriptors, taken, pieces)
        self._chains[taken[0]] = taken
        self.publish(taken[0])
        return taken[0]

    def add_out(self, data: bytes, *, indirect: bool = False) -> int:
        """Make one buffer with `data` available to be read, in the head's own slot."""
        segment = Segment(self.slot(self._free[-1]).address, len(data))
        if len(data) > self.slot_size:
            raise InternalError(f"{len(data)} bytes do not fit a slot of {self.slot_size}")
        self.ram.write(segment.address, data)
        return self.add(out=[segment], indirect=indirect)

    def add_in(self, size: int, *, indirect: bool = False) -> int:
        """Make one empty buffer of `size` bytes available to be written, in the head's own slot."""
        return self.add(into=[Segment(self.slot(self._free[-1]).address, size)], indirect=indirect)

    def slot(self, head: int) -> Segment:
        """Return the buffer that `add_out` and `add_in` use for this head."""
        return Segment(self._slots + head * self.slot_size, self.slot_size)

    def publish(self, head: int) -> None:
        """Put `head` into the available ring, whatever it is: the raw step, for hostile drivers."""
        offset = ring.avail_entry_offset(self._avail_index, self.size)
        self.ram.write_u16(self.avail + offset, head)
        self._avail_index += 1
        self.write_avail_index(self._avail_index)

    def write_avail_index(self, index: int) -> None:
        """Overwrite the available ring's `idx` alone: for hostile drivers."""
        self.ram.write_u16(self.avail + ring.INDEX_OFFSET, index)

    def write_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Overwrite one entry of the descriptor table: for hostile drivers."""
        self.ram.write(self.descriptors + index * ring.DESCRIPTOR_SIZE, descriptor.pack())

    def _take(self, count: int) -> list[int]:
        if not 0 < count <= len(self._free):
            raise InternalError(f"{count} descriptors wanted, {len(self._free)} are free")
        return [self._free.pop() for _ in range(count)]

    def _table_of(self, head: int, entries: int) -> Segment:
        size = entries * ring.DESCRIPTOR_SIZE
        if head not in self._tables or self._tables[head].size < size:
            self._tables[head] = Segment(self.ram.allocate(size), size)
        return Segment(self._tables[head].address, size)

    def _write_chain(
        self,
        table: int,
        indices: Sequence[int],
        pieces: Sequence[tuple[Segment, DescriptorFlag]],
    ) -> None:
        for position, (segment, flags) in enumerate(pieces):
            follows = position + 1 < len(pieces)
            descriptor = Descriptor(
                segment.address,
                segment.size,
                flags | DescriptorFlag.NEXT if follows else flags,
                indices[position + 1] if follows else 0,
            )
            self.ram.write(table + indices[position] * ring.DESCRIPTOR_SIZE, descriptor.pack())

    # Notifications

    def should_kick(self) -> bool:
        """Tell whether the device wants to hear of what was added since the last call."""
        old, self._kicked_index = self._kicked_index, self._avail_index
        if self.event_idx:
            event = self.ram.read_u16(self.used + ring.avail_event_offset(self.size))
            return ring.need_event(event, self._avail_index, old)
        flags = self.ram.read_u16(self.used + ring.FLAGS_OFFSET)
        return self._avail_index != old and not flags & ring.UsedFlag.NO_NOTIFY

    def enable_interrupts(self) -> None:
        """Ask to be called at the next used buffer."""
        self._interrupts = True
        self.ram.write_u16(self.avail + ring.FLAGS_OFFSET, 0)
        self._write_used_event(self._used_index)

    def disable_interrupts(self) -> None:
        """Ask not to be called; with EVENT_IDX, not before 2^15 more buffers."""
        self._interrupts = False
        if not self.event_idx:
            self.ram.write_u16(self.avail + ring.FLAGS_OFFSET, ring.AvailFlag.NO_INTERRUPT)
        self._write_used_event(self._used_index + (1 << 15))

    def call_at(self, count: int) -> None:
        """Ask, with EVENT_IDX, to be called only once `count` more buffers are used."""
        self._write_used_event(self._used_index + count - 1)

    def _write_used_event(self, index: int) -> None:
        if self.event_idx:
            self.ram.write_u16(self.avail + ring.used_event_offset(self.size), index)

    # Taking buffers back

    @property
    def used_waiting(self) -> int:
        """How many used entries `collect` would return now."""
        index = self.ram.read_u16(self.used + ring.INDEX_OFFSET)
        return ring.pending(index, self._used_index)

    def collect(self) -> list[UsedElement]:
        """Take back what the device has used, in its order, and free the descriptors.

        Raises InternalError if the device returned a head that it did not have.
        """
        return list(self._collect())

    def _collect(self) -> Iterator[UsedElement]:
        for _ in range(self.used_waiting):
            offset = ring.used_entry_offset(self._used_index, self.size)
            element = UsedElement.unpack(self.ram.read(self.used + offset, ring.USED_ELEMENT_SIZE))
            if element.head not in self._chains:
                raise InternalError(f"the device returned {element.head}, which it did not have")
            self._free += reversed(self._chains.pop(element.head))
            self._used_index += 1
            yield element
        if self._interrupts:
            self._write_used_event(self._used_index)

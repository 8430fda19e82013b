"""Descriptor chains: what one buffer of a virtqueue consists of (virtio 1.3, section 2.7.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ballast.memory.map import MemoryMap
from ballast_protocol.errors import QueueError
from ballast_protocol.virtio.ring import DESCRIPTOR_SIZE, DescriptorFlag

MAX_CHAIN = 1024
"""Longest chain that is followed; QEMU's VIRTQUEUE_MAX_SIZE."""

_DESCRIPTOR = struct.Struct("<QIHH")
"""`ring.Descriptor` without the typed object: this is read for each buffer of the data path."""

_NEXT, _WRITE, _INDIRECT = map(int, DescriptorFlag)


@dataclass(frozen=True, slots=True)
class Buffer:
    """One contiguous part of a chain, in guest physical memory."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Chain:
    """One buffer that the driver made available.

    Attributes:
        head: Index of its first descriptor, by which it is returned.
        readable: The parts that the device may read, in order.
        writable: The parts that the device may write, in order.
    """

    head: int
    readable: tuple[Buffer, ...]
    writable: tuple[Buffer, ...]

    @property
    def readable_bytes(self) -> int:
        """Total length of the parts that the device may read."""
        if len(self.readable) == 1:
            return self.readable[0].length
        return sum(buffer.length for buffer in self.readable)

    def read(self, memory: MemoryMap, limit: int) -> bytes:
        """Return a copy of the readable bytes, at most `limit` of them.

        The copy is taken once: the guest may change its memory at any moment, and what was checked
        must be what is used.

        Raises:
            AddressError: A part is not RAM.
        """
        if len(self.readable) == 1:
            only = self.readable[0]
            return memory.read(only.address, min(only.length, limit))
        parts: list[bytes] = []
        for buffer in self.readable:
            parts.append(memory.read(buffer.address, min(buffer.length, limit)))
            limit -= len(parts[-1])
        return b"".join(parts)


def walk(
    memory: MemoryMap, table: memoryview, head: int, size: int, *, indirect_allowed: bool
) -> Chain:
    """Follow a chain from `head` through the descriptor table.

    Args:
        memory: To read indirect tables from.
        table: The queue's descriptor table.
        head: Index of the first descriptor; must be below `size`.
        size: The queue's size, which bounds the walk.
        indirect_allowed: Whether INDIRECT_DESC was negotiated.

    Raises:
        QueueError: The chain loops, is too long, or breaks the rules for indirect tables.
        AddressError: An indirect table is not RAM.
    """
    readable: list[Buffer] = []
    writable: list[Buffer] = []
    entries, index, left = table, head, size
    in_indirect = False
    while True:
        if left == 0:
            raise QueueError(f"descriptor chain at {head} loops or is longer than {size}")
        left -= 1
        address, length, flags, following = _DESCRIPTOR.unpack_from(
            entries, index * DESCRIPTOR_SIZE
        )
        if flags & _INDIRECT:
            if in_indirect or not indirect_allowed or flags & _NEXT:
                raise QueueError(f"descriptor {index} must not be indirect")
            entries, size = _indirect_table(memory, address, length)
            index, left, in_indirect = 0, size, True
            continue
        if not flags & _WRITE and writable:
            raise QueueError("a device-readable descriptor follows a device-writable one")
        (writable if flags & _WRITE else readable).append(Buffer(address, length))
        if not flags & _NEXT:
            return Chain(head, tuple(readable), tuple(writable))
        index = following
        if index >= size:
            raise QueueError(f"descriptor chain at {head} continues at {index}, beyond {size}")


def _indirect_table(memory: MemoryMap, address: int, length: int) -> tuple[memoryview, int]:
    """Return a copy of an indirect table and its number of entries."""
    count, rest = divmod(length, DESCRIPTOR_SIZE)
    if rest or not 0 < count <= MAX_CHAIN:
        raise QueueError(f"indirect table of {length} bytes")
    return memoryview(memory.read(address, length)), count

"""The split virtqueue: layouts and index arithmetic (virtio 1.3, section 2.7). No memory access.

A queue of N entries is three areas in guest memory::

    descriptor table   N x {u64 address, u32 length, u16 flags, u16 next}
    available ring     u16 flags, u16 idx, N x u16 head,             u16 used_event
    used ring          u16 flags, u16 idx, N x {u32 head, u32 len},  u16 avail_event

All numbers are little-endian. Both `idx` fields count freely modulo 2^16; the slot is `idx % N`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated

from ballast_protocol.errors import QueueError
from ballast_protocol.wire import LITTLE, U16, U32, U64, Wire

MAX_QUEUE_SIZE = 32768
"""The most entries that a split virtqueue may have (2.7)."""

INDEX_MASK = 0xFFFF
"""Ring indices wrap at 2^16, whatever the queue's size."""


class DescriptorFlag(IntFlag):
    """What a descriptor's `flags` say (2.7.5)."""

    NONE = 0
    NEXT = 1
    """The chain goes on in the descriptor that `next` names."""
    WRITE = 2
    """The buffer is for the device to write; without it, to read."""
    INDIRECT = 4
    """The buffer holds a table of descriptors (2.7.5.3)."""


class AvailFlag(IntFlag):
    """The available ring's `flags`, written by the driver."""

    NO_INTERRUPT = 1
    """The driver does not need to hear of used buffers. Only a hint; unused with EVENT_IDX."""


class UsedFlag(IntFlag):
    """The used ring's `flags`, written by the device."""

    NO_NOTIFY = 1
    """The device does not need to hear of available buffers. Only a hint; unused with EVENT_IDX."""


@dataclass(frozen=True, slots=True)
class Descriptor(Wire, byte_order=LITTLE):
    """`struct virtq_desc` (2.7.5): one piece of a buffer.

    Attributes:
        address: Guest physical address.
        length: Bytes.
        flags: What the piece is and whether another follows.
        next: The descriptor that follows, if `flags` has NEXT.
    """

    address: U64
    length: U32
    flags: Annotated[DescriptorFlag, "H"] = DescriptorFlag.NONE
    next: U16 = 0


@dataclass(frozen=True, slots=True)
class UsedElement(Wire, byte_order=LITTLE):
    """`struct virtq_used_elem` (2.7.8): a chain that the device is done with.

    Attributes:
        head: The chain's first descriptor.
        length: Bytes that the device wrote into the chain's writable part.
    """

    head: U32
    length: U32


DESCRIPTOR_SIZE = Descriptor.SIZE
USED_ELEMENT_SIZE = UsedElement.SIZE

DESCRIPTOR_TABLE_ALIGNMENT = 16
AVAIL_ALIGNMENT = 2
USED_ALIGNMENT = 4

FLAGS_OFFSET = 0
"""Where `flags` is in the available and in the used ring."""

INDEX_OFFSET = 2
"""Where `idx` is in the available and in the used ring."""

ENTRIES_OFFSET = 4
"""Where the entries begin in the available and in the used ring."""


def descriptor_table_size(queue_size: int) -> int:
    """Return the bytes of the descriptor table."""
    return DESCRIPTOR_SIZE * queue_size


def avail_entry_offset(index: int, queue_size: int) -> int:
    """Return where, in the available ring, the entry for the free-running `index` is."""
    return ENTRIES_OFFSET + 2 * (index % queue_size)


def used_event_offset(queue_size: int) -> int:
    """Return where, in the *available* ring, the driver puts `used_event`."""
    return ENTRIES_OFFSET + 2 * queue_size


def avail_ring_size(queue_size: int) -> int:
    """Return the bytes of the available ring; `used_event` has its place even if it is unused."""
    return used_event_offset(queue_size) + 2


def used_entry_offset(index: int, queue_size: int) -> int:
    """Return where, in the used ring, the entry for the free-running `index` is."""
    return ENTRIES_OFFSET + USED_ELEMENT_SIZE * (index % queue_size)


def avail_event_offset(queue_size: int) -> int:
    """Return where, in the *used* ring, the device puts `avail_event`."""
    return ENTRIES_OFFSET + USED_ELEMENT_SIZE * queue_size


def used_ring_size(queue_size: int) -> int:
    """Return the bytes of the used ring; `avail_event` has its place even if it is unused."""
    return avail_event_offset(queue_size) + 2


def check_queue_size(queue_size: int) -> None:
    """Check the number of entries (2.7).

    Raises:
        QueueError: It is not a power of two between 1 and 32768.
    """
    if not 0 < queue_size <= MAX_QUEUE_SIZE or queue_size & (queue_size - 1):
        raise QueueError(
            f"a queue of {queue_size} entries: not a power of two up to {MAX_QUEUE_SIZE}"
        )


def check_alignment(descriptors: int, avail: int, used: int) -> None:
    """Check where the three areas begin (2.7).

    User addresses will do as well as guest addresses: the two differ by whole pages.

    Raises:
        QueueError: An area is not aligned as the specification demands.
    """
    for name, address, alignment in (
        ("descriptor table", descriptors, DESCRIPTOR_TABLE_ALIGNMENT),
        ("available ring", avail, AVAIL_ALIGNMENT),
        ("used ring", used, USED_ALIGNMENT),
    ):
        if address % alignment:
            raise QueueError(f"the {name} at {address:#x} is not aligned to {alignment} bytes")


def pending(new: int, old: int) -> int:
    """Return how many entries lie between two free-running indices."""
    return (new - old) & INDEX_MASK


def need_event(event: int, new: int, old: int) -> bool:
    """Tell whether moving an index from `old` to `new` passes `event` (2.7.10, `vring_need_event`).

    The other side asked to hear of the entry at index `event`. It gets its notification exactly
    when that entry is among those added.
    """
    return pending(new, event + 1) < pending(new, old)

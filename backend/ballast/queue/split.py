"""The device's side of a split virtqueue (virtio 1.3, section 2.7).

Three points are easy to get wrong and are settled here:

* Index fields are read and written through `memoryview.cast("H")`, which is one 16-bit load or
  store. `struct` with an explicit byte order moves single bytes, and a driver on another CPU could
  see half of an index.
* After an index is published, the other side's event field must be read *after* that store has
  become visible. Only a full memory barrier does that; see `full_barrier`.
* The used index is published by `publish`, apart from `add_used`, so that whoever uses the queue
  decides that the work is done (in a balloon: that the pages are gone) before the driver learns.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable

from ballast.memory.map import MemoryMap, Piece
from ballast.queue.chain import Chain, walk
from ballast.queue.state import QueueState
from ballast_protocol.errors import InternalError, QueueError
from ballast_protocol.virtio.ring import (
    ENTRIES_OFFSET,
    INDEX_MASK,
    AvailFlag,
    avail_ring_size,
    check_alignment,
    check_queue_size,
    descriptor_table_size,
    need_event,
    used_ring_size,
)

if sys.byteorder != "little":
    raise InternalError("virtqueues are little-endian and this code reads them natively")

Resolve = Callable[[MemoryMap, int, int], Piece]
"""Finds a ring by the address that the transport was given (a front-end's or a guest's)."""

_AVAIL_FLAGS, _INDEX, _RING = 0, 1, 2
"""Positions in a ring seen as 16-bit words: flags, index, first entry."""

_USED_ELEMENT = struct.Struct("<II")
"""`ring.UsedElement` without the typed object: head and bytes written."""

_fence = threading.Lock()


def full_barrier() -> None:
    """Order every earlier store before every later load, as `smp_mb` does.

    Taking a lock that is free is an atomic read-modify-write, which on x86-64 is a full barrier.
    Python offers nothing more direct.
    """
    _fence.acquire()
    _fence.release()


class SplitQueue:
    """One virtqueue in use: attached to guest memory, taking chains and returning them.

    Attributes:
        state: The positions, kept up to date; valid after `detach` too.
    """

    def __init__(
        self,
        state: QueueState,
        resolve: Resolve,
        publishing: Callable[[int, int], None] = lambda old, new: None,
    ) -> None:
        """Make a queue that is not attached yet.

        Args:
            state: What it is.
            resolve: Finds its rings.
            publishing: Told, before the driver can see it, from where to where the used index goes.
        """
        self.state = state
        self._publishing = publishing
        self._published = state.next_used
        self._resolve = resolve
        self._memory = MemoryMap()
        self._attached = False
        self._signalled: int | None = None
        self._guest_addresses = (0, 0)

    @property
    def is_attached(self) -> bool:
        """Whether the rings were found in the present memory map."""
        return self._attached

    def attach(self, memory: MemoryMap) -> None:
        """Find the three rings in `memory`.

        Raises:
            QueueError: The size or the alignment of a ring is not allowed.
            AddressError: A ring is not wholly inside one region.
        """
        self.detach()
        state = self.state
        check_queue_size(state.size)
        check_alignment(*state.addresses)
        desc = self._resolve(memory, state.desc_address, descriptor_table_size(state.size))
        avail = self._resolve(memory, state.avail_address, avail_ring_size(state.size))
        used = self._resolve(memory, state.used_address, used_ring_size(state.size))
        self._desc = desc.view
        self._avail = avail.view.cast("H")
        self._used_bytes = used.view
        self._used = self._used_bytes.cast("H")
        self._guest_addresses = (avail.guest_address, used.guest_address)
        self._memory = memory
        self._attached = True

    def detach(self) -> None:
        """Let go of guest memory, so that its regions can be closed."""
        if self._attached:
            for view in (self._desc, self._avail, self._used, self._used_bytes):
                view.release()
            self._attached = False
        self._memory = MemoryMap()

    def describe(self) -> dict[str, int]:
        """Return where an attached queue is in guest memory and how large it is."""
        avail, used = self._guest_addresses
        return {"size": self.state.size, "avail-address": avail, "used-address": used}

    def adopt_used_index(self) -> None:
        """Take the position in the used ring from guest memory, where it outlives the device."""
        self._use_from(self._used[_INDEX])

    def recover_used_index(self, old: int, new: int) -> None:
        """Go on after a predecessor that was killed, perhaps while it published.

        Args:
            old: From where the used index went when it was last published.
            new: To where. The index in guest memory is one of the two, unless the driver has
                written there; then what was published counts.
        """
        index = self._used[_INDEX]
        self._use_from(old if index == old else new)

    def _use_from(self, index: int) -> None:
        self.state.next_used = self._published = index
        self._signalled = None
        self._publishing(index, index)

    @property
    def driver_index(self) -> int:
        """The free-running index up to which the driver has filled its ring."""
        return self._avail[_INDEX]

    def available(self) -> int:
        """Return how many chains the driver has made available.

        Raises:
            QueueError: The driver claims more than the ring can hold.
        """
        count = (self._avail[_INDEX] - self.state.next_avail) & INDEX_MASK
        if count > self.state.size:
            raise QueueError(f"{count} chains claimed in a ring of {self.state.size}")
        return count

    def pop_head(self) -> int | None:
        """Take the next chain and return the index of its head, or None when there is none.

        Raises:
            QueueError: The ring's index or the entry is impossible.
        """
        if self.available() == 0:
            return None
        state = self.state
        head = self._avail[_RING + (state.next_avail & (state.size - 1))]
        state.next_avail = (state.next_avail + 1) & INDEX_MASK
        if head >= state.size:
            raise QueueError(f"chain head {head} in a ring of {state.size}")
        return head

    def chain(self, head: int) -> Chain:
        """Return the chain that starts at `head`.

        Raises:
            QueueError: It breaks the specification.
            AddressError: Its indirect table is not RAM.
        """
        state = self.state
        return walk(self._memory, self._desc, head, state.size, indirect_allowed=state.indirect)

    def add_used(self, head: int, written_bytes: int = 0) -> None:
        """Put a chain into the used ring; the driver does not see it before `publish`."""
        state = self.state
        slot = ENTRIES_OFFSET + _USED_ELEMENT.size * (state.next_used & (state.size - 1))
        _USED_ELEMENT.pack_into(self._used_bytes, slot, head, written_bytes)
        state.next_used = (state.next_used + 1) & INDEX_MASK

    def publish(self) -> bool:
        """Show the driver everything added so far; return whether it wants a notification."""
        old, new = self._used[_INDEX], self.state.next_used
        if old == new:
            return False
        self._publishing(self._published, new)
        self._used[_INDEX] = self._published = new
        full_barrier()
        if not self.state.event_idx:
            return not self._avail[_AVAIL_FLAGS] & AvailFlag.NO_INTERRUPT
        previous, self._signalled = self._signalled, new
        if previous is None:
            return True
        return need_event(self._avail[_RING + self.state.size], new, previous)

    def enable_notifications(self) -> bool:
        """Ask to be kicked for the next chain; return True if one is already there.

        Raises:
            QueueError: The driver claims more chains than the ring can hold.
        """
        if self.state.event_idx:
            self._used[_RING + 4 * self.state.size] = self.state.next_avail
            full_barrier()
        return self.available() > 0

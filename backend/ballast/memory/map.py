"""What the guest's RAM is at this moment: regions of shared files, found by guest address.

A `Region` owns one file descriptor and one mapping of it. A `MemoryMap` is an immutable set of
regions with a sequence number; every change makes a new one, so work that began under an older map
can see that it is out of date. Nothing here trusts an address: whatever does not lie wholly inside
the present regions raises `AddressError`.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ballast.memory import guard
from ballast_protocol.errors import AddressError, MalformedError

MAX_REGIONS = 509
"""What libvhost-user and rust-vmm offer as memory slots; QEMU asks for at most 512."""

ADDRESS_LIMIT = 1 << 52
"""No x86-64 or arm64 machine has physical addresses beyond this."""

_MAP_FLAGS = mmap.MAP_SHARED | 0x4000
"""Shared, and without reserving huge pages (MAP_NORESERVE, which `mmap` names from Python 3.13 on).

A hole in a file on hugetlbfs is nobody's: to map it in the ordinary way would take a page for it
out of the host's pool again, and fail where another guest has it by now.
"""


@dataclass(frozen=True)
class RegionLayout:
    """Where a region is, as the front-end announced it.

    Attributes:
        guest_address: First guest physical address.
        size_bytes: Length.
        user_address: The same first byte in the front-end's address space.
        file_offset: Where the region starts in its file, in bytes.
    """

    guest_address: int
    size_bytes: int
    user_address: int
    file_offset: int

    @property
    def guest_end(self) -> int:
        """The first guest physical address after the region."""
        return self.guest_address + self.size_bytes


class Region:
    """One stretch of guest RAM: the only owner of its file descriptor and mapping.

    Attributes:
        layout: Where it is.
        fd: The file that backs it; discards go to this descriptor.
        host_page_bytes: The unit in which the file gives memory back (a huge page on hugetlbfs).
        file_id: Device and inode: two regions with the same value share one file.
        view: The region's bytes, writable.
        address: Where in this process they are.
        on_damage: Told, during an access, that the file has lost pages under the mapping.
    """

    def __init__(self, layout: RegionLayout, fd: int) -> None:
        """Take over `fd` and map the region; on failure `fd` stays with the caller.

        Raises:
            MalformedError: The peer announced a region that its own file cannot hold.
        """
        _check_layout(layout)
        status = os.fstat(fd)
        if layout.file_offset + layout.size_bytes > status.st_size:
            raise MalformedError(
                f"memory region at {layout.guest_address:#x} ends at byte "
                f"{layout.file_offset + layout.size_bytes} of a file of {status.st_size} bytes"
            )
        self.layout = layout
        self.fd = fd
        self.host_page_bytes = max(os.fstatvfs(fd).f_bsize, mmap.PAGESIZE)
        self.file_id = (status.st_dev, status.st_ino)
        self.on_damage: Callable[[], None] = lambda: None
        start = layout.file_offset % self.host_page_bytes
        self._mapping = self._mapped(layout.file_offset - start, status.st_size)
        self._guard = guard.guard(self._mapping, self.host_page_bytes, lambda: self.on_damage())
        self.view = memoryview(self._mapping)[start : start + layout.size_bytes]
        self.address = self._guard + start

    def _mapped(self, offset: int, file_bytes: int) -> mmap.mmap:
        """Return a mapping of all host pages that the region has a part in.

        On hugetlbfs nothing less can be mapped, nor be unmapped again. QEMU announces such regions
        to vfio-user servers: with low memory, where the BIOS lies between them.

        Raises:
            MalformedError: The file cannot be mapped.
        """
        page, end = self.host_page_bytes, self.layout.file_offset + self.layout.size_bytes
        length = min(-(-end // page) * page, file_bytes) - offset
        try:
            return mmap.mmap(self.fd, length, _MAP_FLAGS, offset=offset)
        except (OSError, ValueError) as error:
            raise MalformedError(
                f"memory region at {self.layout.guest_address:#x} cannot be mapped: {error}"
            ) from error

    def close(self) -> None:
        """Unmap and close. Every view that was taken of the region must have been released."""
        self.view.release()
        guard.release(self._guard)
        self._mapping.close()
        os.close(self.fd)


def _check_layout(layout: RegionLayout) -> None:
    """Refuse regions that no front-end has reason to send."""
    page = mmap.PAGESIZE
    if not 0 < layout.size_bytes <= ADDRESS_LIMIT or layout.guest_end > ADDRESS_LIMIT:
        raise MalformedError(
            f"memory region of {layout.size_bytes} bytes at {layout.guest_address:#x} "
            "does not fit a physical address space"
        )
    if layout.user_address + layout.size_bytes > 1 << 64:
        raise MalformedError(f"memory region at {layout.user_address:#x} wraps its address space")
    if layout.file_offset % page or layout.guest_address % page or layout.size_bytes % page:
        raise MalformedError(f"memory region at {layout.guest_address:#x} is not page aligned")


class Piece(NamedTuple):
    """A run of bytes inside one region; a tuple, because one is made for each discard."""

    region: Region
    offset: int
    length: int

    @property
    def guest_address(self) -> int:
        """Where the guest has it."""
        return self.region.layout.guest_address + self.offset

    @property
    def view(self) -> memoryview:
        """The bytes, writable; release it before the region is closed."""
        return self.region.view[self.offset : self.offset + self.length]


@dataclass(frozen=True)
class MemoryMap:
    """All regions at one moment, sorted by guest address, none overlapping.

    Attributes:
        regions: The regions.
        sequence: Grows with every change.
    """

    regions: tuple[Region, ...] = ()
    sequence: int = 0
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layouts = [region.layout for region in self.regions]
        object.__setattr__(self, "_starts", tuple(each.guest_address for each in layouts))
        object.__setattr__(self, "_ends", tuple(each.guest_end for each in layouts))

    def with_region(self, region: Region) -> MemoryMap:
        """Return the map with one more region.

        Raises:
            MalformedError: It overlaps a region that is there, or there are too many.
        """
        if len(self.regions) >= MAX_REGIONS:
            raise MalformedError(f"more than {MAX_REGIONS} memory regions")
        new = region.layout
        for old in (known.layout for known in self.regions):
            if new.guest_address < old.guest_end and old.guest_address < new.guest_end:
                raise MalformedError(
                    f"memory region at {new.guest_address:#x} overlaps the one at "
                    f"{old.guest_address:#x}"
                )
        ordered = sorted((*self.regions, region), key=lambda each: each.layout.guest_address)
        return MemoryMap(tuple(ordered), self.sequence + 1)

    def without_region(self, guest_address: int, size_bytes: int) -> tuple[MemoryMap, Region]:
        """Return the map without the region that has exactly this address and size, and the region.

        Raises:
            MalformedError: There is no such region.
        """
        for region in self.regions:
            layout = region.layout
            if (layout.guest_address, layout.size_bytes) == (guest_address, size_bytes):
                rest = tuple(each for each in self.regions if each is not region)
                return MemoryMap(rest, self.sequence + 1), region
        raise MalformedError(f"no memory region of {size_bytes} bytes at {guest_address:#x}")

    def pieces(self, guest_address: int, length: int) -> Iterable[Piece]:
        """Return the parts of a guest range that are RAM, in order; holes are left out."""
        index = bisect_right(self._starts, guest_address) - 1
        if index >= 0 and length > 0 and guest_address + length <= self._ends[index]:
            return (Piece(self.regions[index], guest_address - self._starts[index], length),)
        return self._parts(guest_address, length)

    def _parts(self, guest_address: int, length: int) -> Iterator[Piece]:
        """Yield what `pieces` returns, of whatever range."""
        end = guest_address + length
        index = max(bisect_right(self._starts, guest_address) - 1, 0)
        for region in self.regions[index:]:
            layout = region.layout
            first = max(guest_address, layout.guest_address)
            last = min(end, layout.guest_end)
            if layout.guest_address >= end:
                return
            if first < last:
                yield Piece(region, first - layout.guest_address, last - first)

    def read(self, guest_address: int, length: int) -> bytes:
        """Return a copy of guest memory, which may span adjacent regions.

        Raises:
            AddressError: Part of the range is not RAM.
        """
        region = self.find(guest_address)
        if region is not None:
            offset = guest_address - region.layout.guest_address
            if offset + length <= region.layout.size_bytes:
                return bytes(region.view[offset : offset + length])
        pieces = list(self.pieces(guest_address, length))
        if sum(piece.length for piece in pieces) != length:
            raise AddressError(f"{length} bytes at guest address {guest_address:#x} are not RAM")
        return b"".join(bytes(piece.view) for piece in pieces)

    def find(self, guest_address: int) -> Region | None:
        """Return the region that holds a guest physical address."""
        index = bisect_right(self._starts, guest_address) - 1
        if index < 0 or guest_address >= self._ends[index]:
            return None
        return self.regions[index]

    def guest_piece(self, guest_address: int, length: int) -> Piece:
        """Return a guest range as one piece, for structures that must be contiguous.

        Raises:
            AddressError: The range is not RAM, or crosses the end of a region.
        """
        region = self.find(guest_address)
        if region is None or guest_address + length > region.layout.guest_end:
            raise AddressError(
                f"{length} bytes at guest address {guest_address:#x} are not inside one RAM region"
            )
        return Piece(region, guest_address - region.layout.guest_address, length)

    def user_piece(self, user_address: int, length: int) -> Piece:
        """Return a range given in the front-end's addresses as one piece.

        Raises:
            AddressError: It does not lie inside one region.
        """
        for region in self.regions:
            offset = user_address - region.layout.user_address
            if offset >= 0 and offset + length <= region.layout.size_bytes:
                return Piece(region, offset, length)
        raise AddressError(
            f"{length} bytes at front-end address {user_address:#x} are not inside one RAM region"
        )

    def files(self) -> dict[tuple[int, int], int]:
        """Return one descriptor for each distinct backing file; the regions keep owning them."""
        return {region.file_id: region.fd for region in self.regions}

    def mapped_bytes(self) -> int:
        """Return how much RAM the regions cover."""
        return sum(region.layout.size_bytes for region in self.regions)

    def backing_bytes(self) -> int:
        """Return the size of the files behind the regions.

        The low megabyte's holes are missing from the regions but not from the files, so this is
        what QEMU calls the machine's RAM size.
        """
        return sum(os.fstat(fd).st_size for fd in self.files().values())

"""The memory regions of one vhost-user session: the only place that opens and closes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from ballast.memory.map import MemoryMap, Region, RegionLayout
from ballast.streams.fds import FdSet
from ballast.transport.kept import KeptFds
from ballast.transport.vhost_user.saved import SavedRegion
from ballast_protocol.errors import PeerError, StateError
from ballast_protocol.vhost_user.message import MemoryRegion


class SessionMemory:
    """Owns the regions that a front-end has announced.

    Attributes:
        map: The regions as they are now.
    """

    def __init__(self, kept: KeptFds, damaged: Callable[[], None] = lambda: None) -> None:
        """Begin without any.

        Args:
            kept: Where their files are kept for a successor.
            damaged: Told, during an access, that a region's file has lost pages.
        """
        self.map = MemoryMap()
        self._kept = kept
        self._damaged = damaged
        self._numbers: dict[Region, int] = {}

    def add(self, announced: MemoryRegion, fds: FdSet) -> None:
        """Take one more region and its descriptor.

        Raises:
            MalformedError: It cannot be mapped, or overlaps another.
        """
        region = self._open(announced, fds)
        try:
            self.map = self.map.with_region(region)
        except Exception:
            self._close(region)
            raise

    def remove(self, announced: MemoryRegion) -> None:
        """Give one region up; nothing may hold a view of it any more.

        Raises:
            MalformedError: There is no such region.
        """
        self.map, region = self.map.without_region(announced.guest_address, announced.size)
        self._close(region)

    def replace(self, announced: tuple[MemoryRegion, ...], fds: FdSet) -> None:
        """Take a whole new set of regions instead of the present ones.

        Raises:
            MalformedError: One of them cannot be used; the present ones stay.
        """
        fresh = MemoryMap((), self.map.sequence)
        try:
            for each in announced:
                region = self._open(each, fds)
                try:
                    fresh = fresh.with_region(region)
                except Exception:
                    self._close(region)
                    raise
        except Exception:
            self._close_all(fresh)
            raise
        old, self.map = self.map, MemoryMap(fresh.regions, self.map.sequence + 1)
        self._close_all(old)

    def _open(self, announced: MemoryRegion, fds: FdSet) -> Region:
        """Map one region; its descriptor leaves the set only when that has worked."""
        layout = RegionLayout(
            guest_address=announced.guest_address,
            size_bytes=announced.size,
            user_address=announced.user_address,
            file_offset=announced.mmap_offset,
        )
        region = Region(layout, fds.peek())
        fds.steal()
        region.on_damage = self._damaged
        # A number that is in use by no region, not even by one that is about to go.
        number = min(set(range(len(self._numbers) + 1)) - set(self._numbers.values()))
        self._numbers[region] = number
        self._kept.put(_name(number), region.fd)
        return region

    def _close(self, region: Region) -> None:
        self._kept.drop(_name(self._numbers.pop(region)))
        region.close()

    def _close_all(self, memory: MemoryMap) -> None:
        for region in memory.regions:
            self._close(region)

    def close(self) -> None:
        """Give everything up."""
        old, self.map = self.map, MemoryMap((), self.map.sequence + 1)
        self._close_all(old)

    # A successor -----------------------------------------------------------------------------

    def save(self) -> tuple[SavedRegion, ...]:
        """Return what a successor needs, beside the files."""
        return tuple(
            SavedRegion(
                region.layout.guest_address,
                region.layout.size_bytes,
                region.layout.user_address,
                region.layout.file_offset,
                self._numbers[region],
            )
            for region in self.map.regions
        )

    def restore(self, regions: Iterable[SavedRegion]) -> None:
        """Take over a predecessor's regions, in place of none.

        Raises:
            StateError: A file is missing, or is not what it was.
        """
        for saved in regions:
            fd = self._kept.take(_name(saved.number))
            layout = RegionLayout(
                guest_address=saved.guest_address,
                size_bytes=saved.size_bytes,
                user_address=saved.user_address,
                file_offset=saved.file_offset,
            )
            try:
                region = Region(layout, fd)
            except PeerError as error:
                os.close(fd)
                raise StateError(f"the guest's memory cannot be taken over: {error}") from error
            region.on_damage = self._damaged
            self._numbers[region] = saved.number
            self.map = self.map.with_region(region)


def _name(number: int) -> str:
    return f"memory.{number}"

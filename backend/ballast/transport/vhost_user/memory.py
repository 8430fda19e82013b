"""The memory regions of one vhost-user session: the only place that opens and closes them."""

from __future__ import annotations

from collections.abc import Callable

from ballast.memory.map import MemoryMap, Region, RegionLayout
from ballast.streams.fds import FdSet
from ballast_protocol.vhost_user.message import MemoryRegion


class SessionMemory:
    """Owns the regions that a front-end has announced.

    Attributes:
        map: The regions as they are now.
    """

    def __init__(self, damaged: Callable[[], None] = lambda: None) -> None:
        """Begin without any.

        Args:
            damaged: Told, during an access, that a region's file has lost pages.
        """
        self.map = MemoryMap()
        self._damaged = damaged

    def add(self, announced: MemoryRegion, fds: FdSet) -> None:
        """Take one more region and its descriptor.

        Raises:
            MalformedError: It cannot be mapped, or overlaps another.
        """
        region = self._open(announced, fds)
        try:
            self.map = self.map.with_region(region)
        except Exception:
            region.close()
            raise

    def remove(self, announced: MemoryRegion) -> None:
        """Give one region up; nothing may hold a view of it any more.

        Raises:
            MalformedError: There is no such region.
        """
        self.map, region = self.map.without_region(announced.guest_address, announced.size)
        region.close()

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
                    region.close()
                    raise
        except Exception:
            _close_all(fresh)
            raise
        old, self.map = self.map, MemoryMap(fresh.regions, self.map.sequence + 1)
        _close_all(old)

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
        return region

    def close(self) -> None:
        """Give everything up."""
        old, self.map = self.map, MemoryMap((), self.map.sequence + 1)
        _close_all(old)


def _close_all(memory: MemoryMap) -> None:
    for region in memory.regions:
        region.close()

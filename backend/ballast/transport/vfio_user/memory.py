"""The memory that a vfio-user client lets the device access: DMA maps with files behind them."""

from __future__ import annotations

from collections.abc import Callable

from ballast.memory.map import MemoryMap, Region, RegionLayout
from ballast.streams.fds import FdSet
from ballast_protocol.vfio_user.events import DmaMap
from ballast_protocol.vfio_user.message import DmaMapFlag

_READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE


class DmaMemory:
    """Owns the regions of the maps that are RAM: shared by a file, and writable.

    ROMs and the pieces of low memory that the BIOS write-protects come as read-only maps, video
    memory and mapped BARs without a file. None of them is the guest's to give up, and no driver has
    its queues there.

    Attributes:
        map: The regions as they are now.
        maps_without_file: How many maps of writable memory came without a file.
    """

    def __init__(self, damaged: Callable[[], None] = lambda: None) -> None:
        """Begin without any.

        Args:
            damaged: Told, during an access, that a region's file has lost pages.
        """
        self.map = MemoryMap()
        self._damaged = damaged
        self.maps_without_file = 0

    def add(self, mapped: DmaMap, fds: FdSet) -> None:
        """Take one more map.

        Raises:
            MalformedError: Its file cannot be mapped as announced.
        """
        if mapped.flags & _READ_WRITE != _READ_WRITE:
            return
        if not mapped.has_fd:
            self.maps_without_file += 1
            return
        layout = RegionLayout(
            guest_address=mapped.address,
            size_bytes=mapped.size,
            user_address=mapped.address,
            file_offset=mapped.offset,
        )
        region = Region(layout, fds.peek())
        fds.steal()
        region.on_damage = self._damaged
        try:
            self.map = self.map.with_region(region)
        except Exception:
            region.close()
            raise

    def remove(self, address: int, size: int) -> None:
        """Give up what was mapped at exactly this range; nothing may hold a view of it any more."""
        for region in self.map.regions:
            layout = region.layout
            if (layout.guest_address, layout.size_bytes) == (address, size):
                self.map, gone = self.map.without_region(address, size)
                gone.close()
                return

    def close(self) -> None:
        """Give everything up."""
        old, self.map = self.map, MemoryMap((), self.map.sequence + 1)
        for region in old.regions:
            region.close()

"""The memory that a vfio-user client lets the device access: DMA maps with files behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ballast.memory.map import MemoryMap, Region, RegionLayout
from ballast.streams.fds import FdSet
from ballast.transport.kept import KeptFds
from ballast_protocol.errors import PeerError, StateError
from ballast_protocol.vfio_user.codes import DmaMapFlag
from ballast_protocol.vfio_user.events import DmaMap

_READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE


@dataclass(frozen=True, slots=True)
class SavedRegion:
    """A region as a successor finds it.

    Attributes:
        address: Its first guest address.
        size_bytes: Its length.
        offset: Where it begins in its file, in bytes.
        file: The number under which the file is stored.
    """

    address: int
    size_bytes: int
    offset: int
    file: int


class DmaMemory:
    """Owns the regions of the maps that are RAM: shared by a file, and writable.

    ROMs and the pieces of low memory that the BIOS write-protects come as read-only maps, video
    memory and mapped BARs without a file. None of them is the guest's to give up, and no driver has
    its queues there.

    QEMU sends a new descriptor of the same file with each of its many maps; of each file one is
    kept for a successor.

    Attributes:
        map: The regions as they are now.
        maps_without_file: How many maps of writable memory came without a file.
    """

    def __init__(self, kept: KeptFds, damaged: Callable[[], None] = lambda: None) -> None:
        """Begin without any.

        Args:
            kept: Where files are kept.
            damaged: Told, during an access, that a region's file has lost pages.
        """
        self.map = MemoryMap()
        self._kept = kept
        self._damaged = damaged
        self._files: dict[tuple[int, int], int] = {}
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
        region = _map(mapped.address, mapped.size, mapped.offset, fds.peek())
        fds.steal()
        self._enter(region)
        if region.file_id not in self._files:
            number = min(set(range(len(self._files) + 1)) - set(self._files.values()))
            self._files[region.file_id] = number
            self._kept.put(_name(number), region.fd)

    def _enter(self, region: Region) -> None:
        """Own a region; one that cannot be entered is closed."""
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
                self._forget_files()
                return

    def _forget_files(self) -> None:
        """Let go of the files that no region needs any more."""
        needed = {region.file_id for region in self.map.regions}
        for file_id in self._files.keys() - needed:
            self._kept.drop(_name(self._files.pop(file_id)))

    def save(self) -> tuple[SavedRegion, ...]:
        """Return the regions for a successor."""
        return tuple(
            SavedRegion(
                region.layout.guest_address,
                region.layout.size_bytes,
                region.layout.file_offset,
                self._files[region.file_id],
            )
            for region in self.map.regions
        )

    def restore(self, saved: Sequence[SavedRegion]) -> None:
        """Take over the regions of a predecessor, in place of none.

        Raises:
            StateError: A file is missing, or is not what it was.
        """
        files: dict[int, int] = {}
        try:
            for each in saved:
                if each.file not in files:
                    files[each.file] = self._kept.take(_name(each.file))
                self._restore(each, files[each.file])
        finally:
            for fd in files.values():
                os.close(fd)

    def _restore(self, saved: SavedRegion, file: int) -> None:
        fd = os.dup(file)
        try:
            region = _map(saved.address, saved.size_bytes, saved.offset, fd)
        except PeerError as error:
            os.close(fd)
            raise StateError(f"the memory of the saved state cannot be used: {error}") from error
        self._enter(region)
        self._files[region.file_id] = saved.file

    def close(self) -> None:
        """Give everything up."""
        old, self.map = self.map, MemoryMap((), self.map.sequence + 1)
        for region in old.regions:
            region.close()
        self._forget_files()


def _map(address: int, size: int, offset: int, fd: int) -> Region:
    """Map a region, which then owns `fd`; on failure that stays with the caller.

    Raises:
        MalformedError: The file cannot be mapped so.
    """
    layout = RegionLayout(
        guest_address=address, size_bytes=size, user_address=address, file_offset=offset
    )
    return Region(layout, fd)


def _name(number: int) -> str:
    return f"memory.{number}"

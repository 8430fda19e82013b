"""The device configuration as a page of memory that the guest reads and writes without us.

A read that a dead or slow server does not answer gives all ones, and a balloon that reads
`num_pages` as 0xffffffff gives up all of its guest's memory. A mapped page answers by itself.

The price: nobody tells us of the guest's writes. The driver writes `actual` after each buffer that
we return, so the page is looked at when the next one comes, shortly after the last one, and
whenever somebody asks.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from ballast.virtio_pci.layout import Layout
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.balloon import BalloonConfig

_NUM_PAGES, _ACTUAL, _HINT_COMMAND, _POISON = range(4)
_FIELD_BYTES = 4
_FLOCK = struct.Struct("@hhqqi0q")
"""`struct flock` of 64-bit machines: type, whence, start, length, process."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ConfigPage:
    """Owns a file of the size of the BAR, of which the client maps the page.

    Attributes:
        fd: The file, to be sent along with the region's description.
    """

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        """Make the file, all zeros, or take over the one that the client has mapped.

        Raises:
            InternalError: The layout has nothing to map.
        """
        window = layout.mapped
        if window is None:
            raise InternalError("no part of this layout can be mapped")
        self.fd = _make(layout.bars[window.bar]) if fd is None else fd
        try:
            self._mapping = mmap.mmap(self.fd, window.length, offset=window.offset)
        except OSError:
            os.close(self.fd)
            raise
        # One aligned 32-bit store or load per field: the guest must not see half of a number.
        self._fields = memoryview(self._mapping).cast("I")

    def pass_on(self, number: int) -> int:
        """Return another descriptor for the page, the caller's, to be sent to the client.

        Whether it was sent can be asked for afterwards, by whoever has the page: it bears a lock
        that lasts as long as anybody has the descriptor or what was mapped with it.

        Args:
            number: Which one it is.
        """
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(number))
        except OSError:
            os.close(fd)
            raise
        return fd

    def was_passed_on(self, number: int) -> bool:
        """Return whether somebody has what `pass_on` has returned for this number."""
        found = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, _lock(number))
        return int(_FLOCK.unpack(found)[0]) != fcntl.F_UNLCK

    def show(self, config: BalloonConfig) -> None:
        """Show the guest the fields that the device writes; the others are the guest's."""
        self._fields[_NUM_PAGES] = config.num_pages
        self._fields[_HINT_COMMAND] = config.free_page_hint_cmd_id

    def store(self, offset: int, data: bytes) -> None:
        """Store what the guest wrote in a message; only whole fields that a driver writes count.

        Args:
            offset: Bytes from the start of the configuration.
            data: What is written there.
        """
        field, remainder = divmod(offset, _FIELD_BYTES)
        if field in (_ACTUAL, _POISON) and not remainder and len(data) == _FIELD_BYTES:
            self._fields[field] = int.from_bytes(data, "little")

    def clear_driver_fields(self) -> None:
        """Begin with a driver that has written nothing."""
        self._fields[_ACTUAL] = self._fields[_POISON] = 0

    @property
    def actual(self) -> int:
        """What the guest last wrote to `actual`."""
        return self._fields[_ACTUAL]

    @property
    def distance(self) -> int:
        """How many pages the guest is from its target, by what it wrote and what it is shown."""
        return abs(self._fields[_NUM_PAGES] - self._fields[_ACTUAL])

    @property
    def poison_val(self) -> int:
        """What the guest last wrote to `poison_val`."""
        return self._fields[_POISON]

    def close(self) -> None:
        """Unmap and close; the client keeps what it has mapped."""
        self._fields.release()
        self._mapping.close()
        os.close(self.fd)


def _lock(number: int) -> bytes:
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)


def _make(size_bytes: int) -> int:
    """Return a new file that nobody can make smaller."""
    fd = os.memfd_create("ballast-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        # The client gets the file too, and must not be able to take the page from under us.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd

"""The device configuration as a page of memory that the guest reads and writes without us.

A read that a dead or slow server does not answer gives all ones, and a balloon that reads
`num_pages` as 0xffffffff gives up all of its guest's memory. A mapped page answers by itself.

The price: nobody tells us of the guest's writes. The driver writes `actual` after each buffer that
we return, so the page is looked at when the next one comes, shortly after the last one, and
whenever somebody asks.
"""

from __future__ import annotations

import mmap
import os

from ballast.virtio_pci.layout import Layout
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.balloon import BalloonConfig

_NUM_PAGES, _ACTUAL, _HINT_COMMAND, _POISON = range(4)


class ConfigPage:
    """Owns a file of the size of the BAR, of which the client maps the page.

    Attributes:
        fd: The file, to be sent along with the region's description.
    """

    def __init__(self, layout: Layout) -> None:
        """Make the file, all zeros.

        Raises:
            InternalError: The layout has nothing to map.
        """
        window = layout.mapped
        if window is None:
            raise InternalError("no part of this layout can be mapped")
        self.fd = os.memfd_create("ballast-config", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, layout.bars[window.bar])
        self._mapping = mmap.mmap(self.fd, window.length, offset=window.offset)
        # One aligned 32-bit store or load per field: the guest must not see half of a number.
        self._fields = memoryview(self._mapping).cast("I")

    def show(self, config: BalloonConfig) -> None:
        """Show the guest the fields that the device writes; the others are the guest's."""
        self._fields[_NUM_PAGES] = config.num_pages
        self._fields[_HINT_COMMAND] = config.free_page_hint_cmd_id

    def clear_driver_fields(self) -> None:
        """Begin with a driver that has written nothing."""
        self._fields[_ACTUAL] = self._fields[_POISON] = 0

    @property
    def actual(self) -> int:
        """What the guest last wrote to `actual`."""
        return self._fields[_ACTUAL]

    @property
    def poison_val(self) -> int:
        """What the guest last wrote to `poison_val`."""
        return self._fields[_POISON]

    def close(self) -> None:
        """Unmap and close; the client keeps what it has mapped."""
        self._fields.release()
        self._mapping.close()
        os.close(self.fd)

"""Where everything is: which regions the function has, and what lies where in its BARs.

BAR 0 has one page each for the common configuration, the ISR status and the device configuration,
and then the notification addresses. A page of its own lets a client map the device configuration,
so that the guest reads it without asking us. The notification page must never be mapped: nobody
would hear of a write to it.

BAR 1 has the MSI-X table and its pending bits. It is apart because a client maps its own table over
ours; next to a mapped page the two would collide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import (
    BAR_COUNT,
    CONFIG_SPACE_SIZE,
    EXPRESS_CONFIG_SPACE_SIZE,
    MAX_VECTORS,
    VECTOR_ENTRY_SIZE,
    pending_array_size,
)

PAGE_SIZE = 4096
"""Bytes of the smallest piece of a BAR that a client can map."""

STRUCTURE_BAR = 0
MSIX_BAR = 1

CONFIG_REGION = 7
"""VFIO's index of the configuration space; BARs have 0 to 5, the expansion ROM 6."""

NOTIFY_MULTIPLIER = 4
"""Bytes between two notification addresses; 4 suits NOTIFICATION_DATA too."""

MAX_QUEUES = 0xFFFF
"""The most queues that `num_queues` can tell."""

_MIN_PENDING_OFFSET = 0x800


class Variant(Enum):
    """How interrupts and reads of the device configuration reach the guest.

    INTx is for functions that must be unplugged from a running machine: QEMU 11.1 aborts when one
    with MSI-X is. QEMU unmaps pages around every INTx, so mapping would gain nothing there.
    """

    MSIX = "msix"
    MSIX_MAPPED = "msix-mapped"
    INTX = "intx"


@dataclass(frozen=True)
class Window:
    """A part of a BAR.

    Attributes:
        bar: Which BAR.
        offset: Bytes from its start.
        length: Bytes.
    """

    bar: int
    offset: int
    length: int

    def holds(self, bar: int, offset: int) -> bool:
        """Return whether a byte of a BAR is in this part."""
        return bar == self.bar and self.offset <= offset < self.offset + self.length


@dataclass(frozen=True)
class Layout:
    """The regions of one function.

    Attributes:
        bars: The size of each BAR; 0 if there is none.
        common: The common configuration structure.
        isr: The ISR status.
        device: The device-specific configuration; None if the device has none.
        notify: The notification addresses.
        vectors: Entries of the MSI-X table; 0 without MSI-X.
        pending_offset: Where in the MSI-X BAR the pending bits are.
        mapped: What a client may map; it has to be served from shared memory.
        has_function_reset: Whether there is a PCI Express capability with function-level reset.
    """

    bars: tuple[int, ...]
    common: Window
    isr: Window
    device: Window | None
    notify: Window
    vectors: int
    pending_offset: int
    mapped: Window | None
    has_function_reset: bool

    @property
    def config_space_size(self) -> int:
        """Bytes of the configuration space."""
        return EXPRESS_CONFIG_SPACE_SIZE if self.has_function_reset else CONFIG_SPACE_SIZE

    def region_size(self, region: int) -> int:
        """Return the bytes of a region by VFIO's index; 0 for one that does not exist."""
        if region == CONFIG_REGION:
            return self.config_space_size
        return self.bars[region] if 0 <= region < BAR_COUNT else 0


def make_layout(
    variant: Variant, *, queue_count: int, config_size: int, has_function_reset: bool = False
) -> Layout:
    """Lay out the regions of a virtio device.

    Args:
        variant: How interrupts and config reads should reach the guest.
        queue_count: How many queues the device has.
        config_size: Bytes of its device-specific configuration.
        has_function_reset: Whether the guest may reset the function on its own; that makes it a
            PCI Express function.

    Raises:
        InternalError: The device does not fit.
    """
    if not 0 < queue_count <= MAX_QUEUES or not 0 <= config_size <= PAGE_SIZE:
        raise InternalError(f"no layout for {queue_count} queues, {config_size} config bytes")
    device = Window(STRUCTURE_BAR, 2 * PAGE_SIZE, PAGE_SIZE) if config_size else None
    notify_length = max(_power_of_two(queue_count * NOTIFY_MULTIPLIER), PAGE_SIZE)
    notify = Window(STRUCTURE_BAR, 3 * PAGE_SIZE, notify_length)
    vectors = 0 if variant is Variant.INTX else min(queue_count + 1, MAX_VECTORS)
    pending_offset = max(_power_of_two(vectors * VECTOR_ENTRY_SIZE), _MIN_PENDING_OFFSET)
    sizes = [0] * BAR_COUNT
    sizes[STRUCTURE_BAR] = _power_of_two(notify.offset + notify.length)
    if vectors:
        sizes[MSIX_BAR] = _power_of_two(pending_offset + pending_array_size(vectors))
    return Layout(
        bars=tuple(sizes),
        common=Window(STRUCTURE_BAR, 0, PAGE_SIZE),
        isr=Window(STRUCTURE_BAR, PAGE_SIZE, PAGE_SIZE),
        device=device,
        notify=notify,
        vectors=vectors,
        pending_offset=pending_offset,
        mapped=device if variant is Variant.MSIX_MAPPED else None,
        has_function_reset=has_function_reset,
    )


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that is not less than a size."""
    return 1 << max(size - 1, 0).bit_length()

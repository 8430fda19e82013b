"""Feature bits that do not belong to one device type (virtio 1.3, section 6)."""

from __future__ import annotations

from enum import IntFlag


class VirtioFeature(IntFlag):
    """Reserved feature bits that a balloon back-end can meet."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    """A descriptor may point to a table of descriptors."""
    EVENT_IDX = 1 << 29
    """`used_event` and `avail_event` say when a notification is wanted."""
    VERSION_1 = 1 << 32
    """The device follows virtio 1.0 or later; QEMU's modern-only device requires it."""
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    NOTIFICATION_DATA = 1 << 38
    RING_RESET = 1 << 40

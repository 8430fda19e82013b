"""The traditional memory balloon device (virtio 1.3, section 5.5): numbers, layouts, names.

`STATISTICS` is the only list of statistics in the project. The codec, QMP's `guest-stats` and the
metric names are all derived from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import NamedTuple

DEVICE_ID = 5
"""virtio device type of the traditional memory balloon."""

DEVICE_NAME = "virtio-balloon"
"""What QEMU calls a device of that type."""

PFN_SHIFT = 12
"""Page frame numbers count 4 KiB pages, whatever the guest's or the host's page size (5.5.6)."""

PAGE_SIZE = 1 << PFN_SHIFT
"""Bytes in the unit that the inflate and deflate queues speak of."""

MAX_PFNS_PER_BUFFER = 256
"""`VIRTIO_BALLOON_ARRAY_PFNS_MAX` of Linux's driver. Longer arrays are legal: it is no bound."""


class BalloonFeature(IntFlag):
    """The balloon's own feature bits (5.5.3). Bits 6 and 8 have private users; leave them alone."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    PAGE_REPORTING = 1 << 5


class BalloonQueue(Enum):
    """The device's five queues by what they carry (5.5.2). Their index depends on the features."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    FREE_PAGE_HINT = "free-page-hint"
    REPORTING = "reporting"


def queue_order(features: int) -> tuple[BalloonQueue, ...]:
    """Return which queue has index 0, 1, 2 ... when `features` are in force.

    Linux gives the optional queues consecutive indices, leaving out those whose feature is absent,
    so the map has to be made from the features that were *negotiated*, not from those offered.
    """
    optional = (
        (BalloonFeature.STATS_VQ, BalloonQueue.STATS),
        (BalloonFeature.FREE_PAGE_HINT, BalloonQueue.FREE_PAGE_HINT),
        (BalloonFeature.PAGE_REPORTING, BalloonQueue.REPORTING),
    )
    present = tuple(queue for bit, queue in optional if features & bit)
    return (BalloonQueue.INFLATE, BalloonQueue.DEFLATE, *present)


class HintCommand(IntEnum):
    """Reserved values of `free_page_hint_cmd_id` (5.5.6.5)."""

    STOP = 0
    DONE = 1


HINT_COMMAND_ID_MIN = 0x8000_0000
"""Where QEMU starts to count the command ids of hinting rounds."""

_CONFIG = struct.Struct("<IIII")


class _ConfigFields(NamedTuple):
    num_pages: int = 0
    actual: int = 0
    free_page_hint_cmd_id: int = 0
    poison_val: int = 0


class BalloonConfig(_ConfigFields):
    """`struct virtio_balloon_config` (5.5.4): four little-endian 32-bit fields.

    A tuple, because the guest reads and writes it for each array of pages.

    Attributes:
        num_pages: How many 4 KiB pages the device wants the guest to give up.
        actual: How many the guest says it has given up.
        free_page_hint_cmd_id: The current hinting round, or a `HintCommand`.
        poison_val: What the guest fills free pages with, if PAGE_POISON was negotiated.
    """

    __slots__ = ()
    SIZE = _CONFIG.size

    def pack(self) -> bytes:
        """Return the 16 bytes of the config space."""
        return _CONFIG.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> BalloonConfig:
        """Read a config space; what lies beyond the end of `data` reads as zero."""
        if len(data) != cls.SIZE:
            data = bytes(data[: cls.SIZE]).ljust(cls.SIZE, b"\0")
        return cls._make(_CONFIG.unpack(data))

    def patched(self, offset: int, data: bytes) -> BalloonConfig:
        """Return the config after a write at `offset`; bytes beyond the end are dropped."""
        raw = bytearray(self.pack())
        end = min(offset + len(data), len(raw))
        if offset < end:
            raw[offset:end] = data[: end - offset]
        return BalloonConfig.unpack(raw)


class StatisticUnit(Enum):
    """What a statistic counts."""

    BYTES = "bytes"
    EVENTS = "events"


@dataclass(frozen=True)
class Statistic:
    """One of the guest memory statistics (5.5.6.4).

    Attributes:
        tag: Its number on the wire.
        name: Its name in QMP's `guest-stats`, as QEMU spells it.
        unit: Bytes, or a count of events.
        is_counter: Whether it only grows while the guest runs.
        meaning: One line for people.
    """

    tag: int
    name: str
    unit: StatisticUnit
    is_counter: bool
    meaning: str

    @property
    def metric(self) -> str:
        """The name without `stat-`, in the form that metric systems use: `free_memory_bytes`."""
        stem = self.name.removeprefix("stat-").replace("-", "_")
        if self.is_counter:
            return f"{stem}_{'bytes_' if self.unit is StatisticUnit.BYTES else ''}total"
        return f"{stem}_bytes"


_B, _E = StatisticUnit.BYTES, StatisticUnit.EVENTS
STATISTICS: tuple[Statistic, ...] = (
    Statistic(0, "stat-swap-in", _B, True, "memory swapped in"),
    Statistic(1, "stat-swap-out", _B, True, "memory swapped out"),
    Statistic(2, "stat-major-faults", _E, True, "page faults that needed a disk read"),
    Statistic(3, "stat-minor-faults", _E, True, "page faults that did not"),
    Statistic(4, "stat-free-memory", _B, False, "MemFree: memory used for nothing"),
    Statistic(5, "stat-total-memory", _B, False, "MemTotal: memory that the kernel manages"),
    Statistic(6, "stat-available-memory", _B, False, "MemAvailable: usable without swapping"),
    Statistic(7, "stat-disk-caches", _B, False, "page cache that can be dropped"),
    Statistic(8, "stat-htlb-pgalloc", _E, True, "huge pages allocated"),
    Statistic(9, "stat-htlb-pgfail", _E, True, "huge page allocations that failed"),
    Statistic(10, "stat-oom-kills", _E, True, "processes killed for want of memory"),
    Statistic(11, "stat-alloc-stalls", _E, True, "allocations that had to wait"),
    Statistic(12, "stat-async-scans", _E, True, "pages scanned by background reclaim"),
    Statistic(13, "stat-direct-scans", _E, True, "pages scanned by allocating tasks"),
    Statistic(14, "stat-async-reclaims", _E, True, "pages reclaimed in the background"),
    Statistic(15, "stat-direct-reclaims", _E, True, "pages reclaimed by allocating tasks"),
)

STATISTIC_BY_TAG = {statistic.tag: statistic for statistic in STATISTICS}

STATISTIC_UNSET = (1 << 64) - 1
"""What QEMU shows for a statistic that the guest has not sent."""

_STAT = struct.Struct("<HQ")
STATISTIC_SIZE = _STAT.size
"""Bytes of one packed `struct virtio_balloon_stat`: a 16-bit tag and a 64-bit value."""

MAX_STATISTICS = 256
"""How many entries of one stats buffer are read; a guest could otherwise keep the device busy."""


def pack_statistics(values: Iterable[tuple[int, int]]) -> bytes:
    """Return the stats buffer that a driver would send for these (tag, value) pairs."""
    return b"".join(_STAT.pack(tag, value) for tag, value in values)


def unpack_statistics(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the (tag, value) pairs of a stats buffer, at most `MAX_STATISTICS` of them.

    A trailing piece shorter than an entry is ignored, as QEMU does.
    """
    whole = min(len(data) // STATISTIC_SIZE, MAX_STATISTICS) * STATISTIC_SIZE
    yield from _STAT.iter_unpack(data[:whole])

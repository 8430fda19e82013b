"""vfio-user on the wire: the header and the layouts of payloads.

The specification is QEMU's docs/interop/vfio-user.rst; what it borrows from VFIO keeps the names
and numbers of <linux/vfio.h>. All numbers travel in the host's byte order.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from ballast_protocol.vfio_user.codes import (
    DeviceFlag,
    DmaMapFlag,
    DmaUnmapFlag,
    FeatureFlag,
    HeaderFlag,
    IrqFlag,
    IrqSetFlag,
    RegionFlag,
)
from ballast_protocol.wire import NATIVE, U16, U32, U64, Wire

MAX_FDS = 16
"""File descriptors that one message may carry: the most that QEMU sends or takes."""

MAX_VERSION_SIZE = 4096
"""Bytes of a VERSION payload that are read. QEMU's has 198."""

MAX_WRITES = 1024
"""Writes that one REGION_WRITE_MULTI may carry. QEMU puts in up to 200."""


MAX_VECTORS = 2048
"""Interrupts of one type: as many as MSI-X can have."""


@dataclass(frozen=True, slots=True)
class Header(Wire, byte_order=NATIVE):
    """What every message begins with.

    Attributes:
        message_id: The sender's own number, echoed in the reply. It need not be unique.
        command: A number, for there may be commands unknown to us.
        size: Bytes of the whole message, this header among them.
        flags: Command or reply.
        error: In a failed reply the errno, if the sender has one.
    """

    message_id: U16
    command: U16
    size: U32
    flags: Annotated[HeaderFlag, "I"] = HeaderFlag.COMMAND
    error: U32 = 0


def message_bytes(header: bytes) -> int:
    """Return how long a message claims to be, header and payload, by its whole header."""
    return int.from_bytes(header[4:8], sys.byteorder)


@dataclass(frozen=True, slots=True)
class VersionHead(Wire, byte_order=NATIVE):
    """What precedes the capabilities in VERSION."""

    major: U16
    minor: U16


@dataclass(frozen=True, slots=True)
class DmaMapping(Wire, byte_order=NATIVE):
    """DMA_MAP's payload (`struct vfio_iommu_type1_dma_map`).

    Attributes:
        argsz: Bytes of this structure.
        flags: What the device may do.
        offset: Where the range starts in the file whose descriptor came along.
        address: Where it starts in the device's address space.
        size: Bytes.
    """

    argsz: U32
    flags: Annotated[DmaMapFlag, "I"]
    offset: U64
    address: U64
    size: U64


@dataclass(frozen=True, slots=True)
class DmaUnmapping(Wire, byte_order=NATIVE):
    """DMA_UNMAP's payload and its reply's (`struct vfio_iommu_type1_dma_unmap`)."""

    argsz: U32
    flags: Annotated[DmaUnmapFlag, "I"]
    address: U64
    size: U64


DIRTY_BITMAP_SIZE = 16
"""Bytes of the bitmap's description that follows a DMA_UNMAP with GET_DIRTY_BITMAP."""


@dataclass(frozen=True, slots=True)
class DeviceInfo(Wire, byte_order=NATIVE):
    """DEVICE_GET_INFO, both ways. In a request only `argsz` counts."""

    argsz: U32
    flags: Annotated[DeviceFlag, "I"] = DeviceFlag.NONE
    region_count: U32 = 0
    irq_count: U32 = 0


@dataclass(frozen=True, slots=True)
class RegionInfo(Wire, byte_order=NATIVE):
    """DEVICE_GET_REGION_INFO, both ways. In a request only `argsz` and `index` count.

    Attributes:
        argsz: In a request, bytes that the client has room for; in a reply, bytes that it needs.
        flags: Rights, and what else the reply has.
        index: The region.
        capability_offset: Where in this payload the first capability is; 0 without.
        size: Bytes of the region.
        offset: Where the region starts in the file whose descriptor came along.
    """

    argsz: U32
    flags: Annotated[RegionFlag, "I"]
    index: U32
    capability_offset: U32 = 0
    size: U64 = 0
    offset: U64 = 0


@dataclass(frozen=True, slots=True)
class CapabilityHead(Wire, byte_order=NATIVE):
    """What every region capability begins with.

    Attributes:
        kind: What it says, a `RegionCapabilityId`.
        version: Of this kind of capability.
        next: Where in the payload the next one is; 0 in the last.
    """

    kind: U16
    version: U16
    next: U32


@dataclass(frozen=True, slots=True)
class RegionIoFds(Wire, byte_order=NATIVE):
    """DEVICE_GET_REGION_IO_FDS, both ways; in a reply the sub-regions follow."""

    argsz: U32
    flags: U32
    index: U32
    count: U32


@dataclass(frozen=True, slots=True)
class IrqInfo(Wire, byte_order=NATIVE):
    """DEVICE_GET_IRQ_INFO, both ways. In a request only `argsz` and `index` count."""

    argsz: U32
    flags: Annotated[IrqFlag, "I"]
    index: U32
    count: U32 = 0


@dataclass(frozen=True, slots=True)
class IrqSet(Wire, byte_order=NATIVE):
    """What DEVICE_SET_IRQS begins with; booleans may follow, descriptors may come along."""

    argsz: U32
    flags: Annotated[IrqSetFlag, "I"]
    index: U32
    start: U32
    count: U32


@dataclass(frozen=True, slots=True)
class RegionAccess(Wire, byte_order=NATIVE):
    """Which part of a region is read or written; the bytes follow where there are any."""

    offset: U64
    region: U32
    count: U32


@dataclass(frozen=True, slots=True)
class WriteCount(Wire, byte_order=NATIVE):
    """How many writes follow in REGION_WRITE_MULTI, and how many were done in its reply."""

    count: U64


MULTI_DATA_SIZE = 8
"""Bytes that follow each `RegionAccess` of REGION_WRITE_MULTI, whether it needs them or not."""


@dataclass(frozen=True, slots=True)
class DmaAccess(Wire, byte_order=NATIVE):
    """Which part of the client's memory DMA_READ and DMA_WRITE are about; the bytes follow."""

    address: U64
    count: U64


@dataclass(frozen=True, slots=True)
class FeatureHead(Wire, byte_order=NATIVE):
    """What DEVICE_FEATURE begins with."""

    argsz: U32
    flags: Annotated[FeatureFlag, "I"]


@dataclass(frozen=True, slots=True)
class MigrationData(Wire, byte_order=NATIVE):
    """What MIG_DATA_READ and MIG_DATA_WRITE begin with."""

    argsz: U32
    size: U32


@dataclass(frozen=True, slots=True)
class DirtyPages(Wire, byte_order=NATIVE):
    """What DIRTY_PAGES begins with."""

    argsz: U32
    flags: U32


def pack_message(
    message_id: int,
    command: int,
    payload: bytes = b"",
    flags: HeaderFlag = HeaderFlag.COMMAND,
    error: int = 0,
) -> bytes:
    """Return a whole message, to be sent in one piece: QEMU gives up on half a header."""
    # Not by way of a `Header`: a virtual CPU waits for most of what is packed here.
    size = Header.SIZE + len(payload)
    return Header.LAYOUT.pack(message_id, command, size, flags, error) + payload

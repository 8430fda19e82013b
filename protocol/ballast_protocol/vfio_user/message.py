"""vfio-user on the wire: codes, flags and payload layouts.

The specification is QEMU's docs/interop/vfio-user.rst; what it borrows from VFIO keeps the names
and numbers of <linux/vfio.h>. All numbers travel in the host's byte order.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from ballast_protocol.wire import NATIVE, U16, U32, U64, Wire

MAX_FDS = 16
"""File descriptors that one message may carry: the most that QEMU sends or takes."""

MAX_VERSION_SIZE = 4096
"""Bytes of a VERSION payload that are read. QEMU's has 198."""

MAX_WRITES = 1024
"""Writes that one REGION_WRITE_MULTI may carry. QEMU puts in up to 200."""


MAX_VECTORS = 2048
"""Interrupts of one type: as many as MSI-X can have."""


class HeaderFlag(IntFlag):
    """The header's `flags`."""

    COMMAND = 0
    """The type, in the four lowest bits: something is asked for."""
    REPLY = 1
    """The type: an answer to the command with the same message id."""
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    """In a command: do not answer, not even if it fails."""
    ERROR = 0x20
    """In a reply: the command failed, `error` says why, and no payload follows."""


class Command(IntEnum):
    """What either side may ask for."""

    VERSION = 1
    """The first message: protocol version and capabilities."""
    DMA_MAP = 2
    """The device may access a range of the client's memory."""
    DMA_UNMAP = 3
    """It may no longer."""
    DEVICE_GET_INFO = 4
    """How many regions and interrupt types there are."""
    DEVICE_GET_REGION_INFO = 5
    """A region's size, rights and capabilities."""
    DEVICE_GET_REGION_IO_FDS = 6
    """Through which descriptors parts of a region may be written without a message."""
    DEVICE_GET_IRQ_INFO = 7
    """How many interrupts of a type there are."""
    DEVICE_SET_IRQS = 8
    """Which eventfd an interrupt signals; mask, unmask and trigger."""
    REGION_READ = 9
    """The guest loads from a region."""
    REGION_WRITE = 10
    """The guest stores to a region."""
    DMA_READ = 11
    """Server to client: read the client's memory."""
    DMA_WRITE = 12
    """Server to client: write the client's memory."""
    DEVICE_RESET = 13
    """Reset the device."""
    DIRTY_PAGES = 14
    """Version 0.0 only: log which memory the device writes."""
    REGION_WRITE_MULTI = 15
    """Several small stores at once."""
    DEVICE_FEATURE = 16
    """Get, set or probe a feature; so far all of them are about migration."""
    MIG_DATA_READ = 17
    """Read the state of a device that migrates away."""
    MIG_DATA_WRITE = 18
    """Write the state of a device that has migrated here."""


class PciRegion(IntEnum):
    """A PCI device's regions (`VFIO_PCI_*_REGION_INDEX`)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class PciIrq(IntEnum):
    """A PCI device's interrupt types (`VFIO_PCI_*_IRQ_INDEX`)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class DeviceFlag(IntFlag):
    """Flags of DEVICE_GET_INFO."""

    NONE = 0
    RESET = 1
    """DEVICE_RESET is served."""
    PCI = 2


class RegionFlag(IntFlag):
    """Flags of DEVICE_GET_REGION_INFO."""

    NONE = 0
    READ = 1
    WRITE = 2
    MMAP = 4
    """The client may map the region's file, whose descriptor comes with the reply."""
    CAPS = 8
    """Capabilities follow in the reply."""


class RegionCapabilityId(IntEnum):
    """What a region capability says (`VFIO_REGION_INFO_CAP_*`)."""

    SPARSE_MMAP = 1
    """Only some areas can be mapped."""
    TYPE = 2
    """What a device-specific region is."""
    MSIX_MAPPABLE = 3
    """The pages with the MSI-X table may be mapped too."""


class IrqFlag(IntFlag):
    """Flags of DEVICE_GET_IRQ_INFO."""

    NONE = 0
    EVENTFD = 1
    """Can signal an eventfd."""
    MASKABLE = 2
    """MASK and UNMASK are served."""
    AUTOMASKED = 4
    """Masks itself when it has fired."""
    NORESIZE = 8
    """More interrupts can only be enabled after all were disabled."""


class IrqSetFlag(IntFlag):
    """Flags of DEVICE_SET_IRQS: exactly one of the DATA and one of the ACTION bits is set."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


class DmaMapFlag(IntFlag):
    """What the device may do with a range of memory."""

    NONE = 0
    READ = 1
    WRITE = 2


class DmaUnmapFlag(IntFlag):
    """Flags of DMA_UNMAP, as VFIO has them."""

    NONE = 0
    GET_DIRTY_BITMAP = 1
    """Version 0.0 only: say which pages the device has written."""
    ALL = 2
    """Forget every range; address and size are 0."""


class FeatureFlag(IntFlag):
    """Flags of DEVICE_FEATURE; the sixteen bits below them say which feature."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


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
    size = Header.SIZE + len(payload)
    return Header(message_id, command, size, flags, error).pack() + payload


def name_of(command: int) -> str:
    """Return how to call a command in a message to people."""
    return Command(command).name if command in _COMMANDS else f"command {command}"


_COMMANDS = frozenset(Command)

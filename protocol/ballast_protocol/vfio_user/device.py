"""What a device consists of, as the client gets to know it: its regions and its interrupts.

    Device(
        regions=(Region(0x1000), *[Region(0)] * 6, Region(256)),
        irqs=(Irq(1, IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED), Irq(0), Irq(6)),
    )

QEMU wants at least the regions up to `PciRegion.CONFIG` and the types up to `PciIrq.MSIX`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ballast_protocol.errors import InternalError
from ballast_protocol.vfio_user.codes import DeviceFlag, IrqFlag, RegionCapabilityId, RegionFlag
from ballast_protocol.vfio_user.events import IrqAction, RefusalError
from ballast_protocol.vfio_user.message import (
    MAX_VECTORS,
    CapabilityHead,
    DeviceInfo,
    IrqInfo,
    RegionInfo,
    RegionIoFds,
)

MAX_REGIONS = 100
"""Regions that QEMU puts up with."""

MAX_IRQ_TYPES = 50
"""Interrupt types that QEMU puts up with."""

_ALIGNMENT = 8
_U32X2 = struct.Struct("=II")
_U64X2 = struct.Struct("=QQ")
_IO_FD = struct.Struct("=QQIIIIQ")


class Area(NamedTuple):
    """A part of a region, in bytes from the region's start."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SparseMmap:
    """A region capability: only these areas of the region can be mapped."""

    areas: tuple[Area, ...]

    def body(self) -> tuple[RegionCapabilityId, bytes]:
        """Return the capability's kind and what follows its head."""
        areas = b"".join(_U64X2.pack(*area) for area in self.areas)
        return RegionCapabilityId.SPARSE_MMAP, _U32X2.pack(len(self.areas), 0) + areas


@dataclass(frozen=True, slots=True)
class RegionType:
    """A region capability: what a region beyond the standard ones is for."""

    kind: int
    subkind: int

    def body(self) -> tuple[RegionCapabilityId, bytes]:
        """Return the capability's kind and what follows its head."""
        return RegionCapabilityId.TYPE, _U32X2.pack(self.kind, self.subkind)


@dataclass(frozen=True, slots=True)
class MsixMappable:
    """A region capability: the pages with the MSI-X table may be mapped like any other."""

    def body(self) -> tuple[RegionCapabilityId, bytes]:
        """Return the capability's kind and what follows its head: nothing."""
        return RegionCapabilityId.MSIX_MAPPABLE, b""


RegionCapability = SparseMmap | RegionType | MsixMappable


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """A part of a region where a guest's store signals an eventfd instead of making a message.

    QEMU 11.1 never asks for these.

    Attributes:
        offset: Where in the region.
        size: Bytes of the store; 0 if any will do.
        fd_index: Which of the descriptors that go along with the reply.
        flags: KVM's `KVM_IOEVENTFD_FLAG_*`.
        datamatch: The value that must be stored, if `flags` says so.
    """

    offset: int
    size: int
    fd_index: int
    flags: int = 0
    datamatch: int = 0

    def pack(self) -> bytes:
        """Return the sub-region's 40 bytes; its type, 0, is "ioeventfd"."""
        return _IO_FD.pack(self.offset, self.size, self.fd_index, 0, self.flags, 0, self.datamatch)


@dataclass(frozen=True, slots=True)
class Region:
    """One region. A device that lacks a region of the standard ones has it with size 0.

    Attributes:
        size: Bytes.
        flags: READ, WRITE, and MMAP if a file goes along with the region's description.
        capabilities: In the order in which the client finds them.
        file_offset: Where the region starts in that file.
        io_event_fds: Where stores can signal eventfds.
    """

    size: int
    flags: RegionFlag = RegionFlag.READ | RegionFlag.WRITE
    capabilities: tuple[RegionCapability, ...] = ()
    file_offset: int = 0
    io_event_fds: tuple[IoEventFd, ...] = ()

    @property
    def mappable(self) -> bool:
        """Whether a file goes along with the description."""
        return bool(self.flags & RegionFlag.MMAP)


@dataclass(frozen=True, slots=True)
class Irq:
    """One interrupt type: how many interrupts it has, and what they can do."""

    count: int
    flags: IrqFlag = IrqFlag.EVENTFD


class Description(NamedTuple):
    """A reply's payload, and whether the file or files that it speaks of go along with it."""

    payload: bytes
    with_fds: bool


@dataclass(frozen=True, slots=True)
class Device:
    """The whole device, which does not change while a client is connected.

    Attributes:
        regions: By their index; for PCI see `PciRegion`.
        irqs: By their index; for PCI see `PciIrq`.
        flags: What it is, and whether it can be reset.
    """

    regions: tuple[Region, ...]
    irqs: tuple[Irq, ...]
    flags: DeviceFlag = DeviceFlag.PCI | DeviceFlag.RESET

    def __post_init__(self) -> None:
        """Check what a client would choke on.

        Raises:
            InternalError: There are too many of something, or an area beyond its region.
        """
        if len(self.regions) > MAX_REGIONS or len(self.irqs) > MAX_IRQ_TYPES:
            raise InternalError(f"{len(self.regions)} regions, {len(self.irqs)} interrupt types")
        for index, irq in enumerate(self.irqs):
            if not 0 <= irq.count <= MAX_VECTORS:
                raise InternalError(f"{irq.count} interrupts of type {index}")
        for index, region in enumerate(self.regions):
            _check_region(index, region)

    # Descriptions

    def info(self) -> bytes:
        """Return the reply to DEVICE_GET_INFO."""
        counts = (len(self.regions), len(self.irqs))
        return DeviceInfo(DeviceInfo.SIZE, self.flags, *counts).pack()

    def irq_info(self, index: int) -> bytes:
        """Return the reply to DEVICE_GET_IRQ_INFO."""
        irq = self.irqs[index]
        return IrqInfo(IrqInfo.SIZE, irq.flags, index, irq.count).pack()

    def region_info(self, index: int, room: int) -> Description:
        """Return the reply to DEVICE_GET_REGION_INFO.

        Where the client has no room for the capabilities, it is told how much they need, and the
        region looks as if it had neither them nor a file: which parts of the file belong to the
        region could not be said. The client asks again.
        """
        region = self.regions[index]
        capabilities = _pack_capabilities(region.capabilities)
        needed, flags, at = RegionInfo.SIZE + len(capabilities), region.flags, 0
        if needed > room:
            capabilities, flags = b"", flags & (RegionFlag.READ | RegionFlag.WRITE)
        elif capabilities:
            flags, at = flags | RegionFlag.CAPS, RegionInfo.SIZE
        info = RegionInfo(needed, flags, index, at, region.size, region.file_offset)
        return Description(info.pack() + capabilities, bool(flags & RegionFlag.MMAP))

    def region_io_fds(self, index: int, room: int) -> Description:
        """Return the reply to DEVICE_GET_REGION_IO_FDS, without the array if there is no room."""
        found = self.regions[index].io_event_fds
        array = b"".join(item.pack() for item in found)
        needed = RegionIoFds.SIZE + len(array)
        fits = needed <= room
        head = RegionIoFds(needed, 0, index, len(found))
        return Description(head.pack() + (array if fits else b""), fits and bool(found))

    # Bounds

    def check_region(self, index: int) -> None:
        """Pass a region that exists.

        Raises:
            RefusalError: It does not.
        """
        if index >= len(self.regions):
            raise RefusalError(errno.EINVAL, f"region {index} of {len(self.regions)}")

    def check_access(self, index: int, offset: int, count: int, right: RegionFlag) -> None:
        """Pass an access that lies inside a region which allows it.

        Raises:
            RefusalError: It does not.
        """
        self.check_region(index)
        region = self.regions[index]
        if not region.flags & right:
            raise RefusalError(errno.EPERM, f"region {index} does not allow {right.name}")
        if not count or offset + count > region.size:
            raise RefusalError(
                errno.EINVAL, f"bytes {offset:#x}+{count:#x} of region {index}: {region.size:#x}"
            )

    def check_irq_type(self, index: int) -> None:
        """Pass an interrupt type that exists.

        Raises:
            RefusalError: It does not.
        """
        if index >= len(self.irqs):
            raise RefusalError(errno.EINVAL, f"interrupt type {index} of {len(self.irqs)}")

    def check_irqs(
        self, index: int, start: int, count: int, action: IrqAction, *, eventfds: bool = False
    ) -> None:
        """Pass interrupts that exist and can do this.

        Raises:
            RefusalError: They do not, or cannot.
        """
        self.check_irq_type(index)
        irq = self.irqs[index]
        if start + count > irq.count:
            raise RefusalError(
                errno.EINVAL, f"interrupts {start}+{count} of type {index}: {irq.count}"
            )
        if action is not IrqAction.TRIGGER and not irq.flags & IrqFlag.MASKABLE:
            raise RefusalError(errno.EINVAL, f"interrupt type {index} cannot {action.value}")
        if eventfds and not irq.flags & IrqFlag.EVENTFD:
            raise RefusalError(errno.EINVAL, f"interrupt type {index} signals no eventfd")


def _pack_capabilities(capabilities: Sequence[RegionCapability]) -> bytes:
    """Return the chain as it lies behind a `RegionInfo`."""
    chain, at = b"", RegionInfo.SIZE
    for position, capability in enumerate(capabilities):
        kind, body = capability.body()
        size = -(-(CapabilityHead.SIZE + len(body)) // _ALIGNMENT) * _ALIGNMENT
        at += size
        following = at if position + 1 < len(capabilities) else 0
        chain += (CapabilityHead(kind, 1, following).pack() + body).ljust(size, b"\0")
    return chain


def _check_region(index: int, region: Region) -> None:
    if region.flags & RegionFlag.CAPS:
        raise InternalError(f"region {index}: CAPS follows from the capabilities")
    if not 0 <= region.size < 1 << 63:
        raise InternalError(f"region {index} has {region.size:#x} bytes")
    for capability in region.capabilities:
        if not isinstance(capability, SparseMmap):
            continue
        if not region.mappable:
            raise InternalError(f"region {index} has areas to map, but no file")
        for area in capability.areas:
            if area.offset < 0 or area.size <= 0 or area.offset + area.size > region.size:
                raise InternalError(f"region {index}: {area} is not inside")

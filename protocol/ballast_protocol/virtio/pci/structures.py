"""What virtio puts on PCI: ids, capabilities, and the structures that they locate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from ballast_protocol.virtio.pci.config_space import ALL_BITS, Capability, CapabilityId
from ballast_protocol.virtio.pci.registers import RegisterTable
from ballast_protocol.wire import LITTLE, U8, U16, U32, Wire

VENDOR_ID = 0x1AF4
"""Every virtio device's vendor (4.1.2.1)."""

DEVICE_ID_BASE = 0x1040
"""A device without legacy interface has this plus its virtio device type (4.1.2.1)."""

REVISION = 1
"""1 or more keeps legacy drivers away (4.1.2.1)."""

SUBSYSTEM_ID = 0x1100
"""What QEMU's own devices have; 0x40 or more keeps legacy drivers away (4.1.2.1)."""

CLASS_OTHER = 0x00FF00
"""The class code of a device that fits no class, which is the balloon's in QEMU."""


class StructureType(IntEnum):
    """Which structure a virtio capability speaks of (4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_CFG = 5


@dataclass(frozen=True, slots=True)
class StructureLocation(Wire, byte_order=LITTLE):
    """`struct virtio_pci_cap` (4.1.4) without its first two bytes.

    Attributes:
        cap_len: Bytes of the whole capability.
        cfg_type: Which structure it locates.
        bar: The BAR that holds the structure.
        id: Tells capabilities of one type apart, where a type says how.
        padding: Zero.
        offset: Bytes from the start of the BAR.
        length: Bytes of the structure.
    """

    cap_len: U8
    cfg_type: Annotated[StructureType, "B"]
    bar: U8
    id: U8
    padding: U16
    offset: U32
    length: U32


def structure_capability(
    kind: StructureType, bar: int = 0, offset: int = 0, length: int = 0, *, extra: bytes = b""
) -> Capability:
    """Return the capability that says where a virtio structure is.

    Args:
        kind: Which structure.
        bar: The BAR that holds it.
        offset: Bytes from the start of the BAR.
        length: Bytes of the structure.
        extra: What this type of capability has after the common part.
    """
    cap_len = 2 + StructureLocation.SIZE + len(extra)
    location = StructureLocation(cap_len, kind, bar, 0, 0, offset, length)
    return Capability(CapabilityId.VENDOR, location.pack() + extra)


def notify_capability(bar: int, offset: int, length: int, multiplier: int) -> Capability:
    """Return the notification capability (4.1.4.4).

    Args:
        bar: The BAR that holds the structure.
        offset: Bytes from the start of the BAR.
        length: Bytes of the structure.
        multiplier: Bytes between the notification addresses of two queues.
    """
    extra = multiplier.to_bytes(4, "little")
    return structure_capability(StructureType.NOTIFY, bar, offset, length, extra=extra)


def pci_cfg_capability() -> Capability:
    """Return the capability through which BARs are accessed without being mapped (4.1.4.9)."""
    return structure_capability(StructureType.PCI_CFG, extra=bytes(4))


class PciCfg(RegisterTable):
    """The writable registers of the PCI_CFG capability: what to access, and the data."""

    BAR = (4, 1, 0xFF)
    OFFSET = (8, 4, ALL_BITS)
    LENGTH = (12, 4, ALL_BITS)
    DATA = (16, 4, ALL_BITS)


class Common(RegisterTable):
    """`struct virtio_pci_common_cfg` (4.1.4.3); 64-bit fields are two 32-bit ones (4.1.3)."""

    DEVICE_FEATURE_SELECT = (0x00, 4)
    DEVICE_FEATURE = (0x04, 4)
    DRIVER_FEATURE_SELECT = (0x08, 4)
    DRIVER_FEATURE = (0x0C, 4)
    CONFIG_MSIX_VECTOR = (0x10, 2)
    NUM_QUEUES = (0x12, 2)
    DEVICE_STATUS = (0x14, 1)
    CONFIG_GENERATION = (0x15, 1)
    QUEUE_SELECT = (0x16, 2)
    QUEUE_SIZE = (0x18, 2)
    QUEUE_MSIX_VECTOR = (0x1A, 2)
    QUEUE_ENABLE = (0x1C, 2)
    QUEUE_NOTIFY_OFF = (0x1E, 2)
    QUEUE_DESC_LOW = (0x20, 4)
    QUEUE_DESC_HIGH = (0x24, 4)
    QUEUE_DRIVER_LOW = (0x28, 4)
    QUEUE_DRIVER_HIGH = (0x2C, 4)
    QUEUE_DEVICE_LOW = (0x30, 4)
    QUEUE_DEVICE_HIGH = (0x34, 4)
    QUEUE_NOTIF_CONFIG_DATA = (0x38, 2)
    QUEUE_RESET = (0x3A, 2)
    ADMIN_QUEUE_INDEX = (0x3C, 2)
    ADMIN_QUEUE_NUM = (0x3E, 2)


COMMON_SIZE = Common.ADMIN_QUEUE_NUM.offset + Common.ADMIN_QUEUE_NUM.width
"""Bytes of the common configuration structure."""

COMMON_BY_PLACE = {(register.offset, register.width): register for register in Common}
"""The register that an access of its natural width at its offset means."""


NO_VECTOR = 0xFFFF
"""No MSI-X vector is assigned; also the answer to a vector that cannot be (4.1.5.1.2)."""


class DeviceStatus(IntFlag):
    """The device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 0x40
    """Set by the device, which cannot go on; only a reset clears it."""
    FAILED = 0x80


DRIVER_STATUS = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.FAILED
)
"""The status bits that are the driver's to set."""


class Isr(IntFlag):
    """The ISR status (4.1.4.5). Reading it clears it."""

    QUEUE = 1
    CONFIG = 2


class StructureFeature(IntFlag):
    """Feature bits that give meaning to fields which are always 0 here (section 6)."""

    SR_IOV = 1 << 37
    NOTIF_CONFIG_DATA = 1 << 39
    ADMIN_VQ = 1 << 41

"""vfio-user on the wire: the numbers and flags that messages carry.

The specification is QEMU's docs/interop/vfio-user.rst; what it borrows from VFIO keeps the names
and numbers of <linux/vfio.h>.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


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


def name_of(command: int) -> str:
    """Return how to call a command in a message to people."""
    return _NAMES.get(command) or f"command {command}"


_NAMES = {int(command): command.name for command in Command}

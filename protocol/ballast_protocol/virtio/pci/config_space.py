"""The PCI configuration space as every function has it: header, capability list, MSI-X, reset.

Offsets in a capability's table count from the start of the capability.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.registers import RegisterTable


class Command(IntFlag):
    """The COMMAND register (PCI 3.0, 6.2.2)."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    """The function may read and write memory and send MSI-X messages."""
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


class PciStatus(IntFlag):
    """The STATUS register (PCI 3.0, 6.2.3)."""

    INTERRUPT = 1 << 3
    """The function has an interrupt for INTx, whether or not INTx is disabled."""
    CAPABILITIES = 1 << 4


BAR_COUNT = 6

CONFIG_SPACE_SIZE = 256
"""Bytes of a conventional configuration space: all that virtio needs."""

EXPRESS_CONFIG_SPACE_SIZE = 4096
"""Bytes with the extended space of PCI Express, in which we have nothing."""

ALL_BITS = 0xFFFF_FFFF


class Header(RegisterTable):
    """The type 0 configuration header (PCI 3.0, 6.1). BARs are writable by their size."""

    VENDOR_ID = (0x00, 2)
    DEVICE_ID = (0x02, 2)
    COMMAND = (
        0x04,
        2,
        Command.IO
        | Command.MEMORY
        | Command.BUS_MASTER
        | Command.PARITY
        | Command.SERR
        | Command.INTX_DISABLE,
    )
    STATUS = (0x06, 2)
    REVISION = (0x08, 1)
    CLASS_CODE = (0x09, 3)
    CACHE_LINE = (0x0C, 1, 0xFF)
    LATENCY = (0x0D, 1)
    TYPE = (0x0E, 1)
    BAR0 = (0x10, 4)
    SUBSYSTEM_VENDOR_ID = (0x2C, 2)
    SUBSYSTEM_ID = (0x2E, 2)
    ROM = (0x30, 4)
    CAPABILITIES = (0x34, 1)
    INTERRUPT_LINE = (0x3C, 1, 0xFF)
    INTERRUPT_PIN = (0x3D, 1)


INTERRUPT_PIN_A = 1


class CapabilityId(IntEnum):
    """Which kind of capability (PCI Code and ID Assignment, 2)."""

    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


FIRST_CAPABILITY = 0x40
"""Where the header ends and capabilities can begin."""


@dataclass(frozen=True)
class Capability:
    """One capability, not yet placed.

    Attributes:
        id: Its kind.
        body: What follows the kind and the link to the next one.
    """

    id: CapabilityId
    body: bytes


@dataclass(frozen=True)
class PlacedCapability:
    """A capability in its place in the list.

    Attributes:
        capability: What was placed.
        offset: Where it is in the configuration space.
        data: All its bytes, kind and link included.
    """

    capability: Capability
    offset: int
    data: bytes


def place_capabilities(capabilities: Iterable[Capability]) -> tuple[PlacedCapability, ...]:
    """Lay capabilities out behind the header, each linked to the next, on 4-byte boundaries.

    Raises:
        InternalError: They do not fit into a conventional configuration space.
    """
    wanted = tuple(capabilities)
    placed = []
    offset = FIRST_CAPABILITY
    for number, capability in enumerate(wanted, start=1):
        end = offset + 2 + len(capability.body)
        following = -(-end // 4) * 4
        if end > CONFIG_SPACE_SIZE:
            raise InternalError(f"{len(wanted)} capabilities do not fit into the config space")
        link = following if number < len(wanted) else 0
        data = bytes((capability.id, link)) + capability.body
        placed.append(PlacedCapability(capability, offset, data))
        offset = following
    return tuple(placed)


class MsixControl(IntFlag):
    """The message control register of MSI-X. Its low 11 bits are the last vector's number."""

    FUNCTION_MASK = 1 << 14
    ENABLE = 1 << 15


class Msix(RegisterTable):
    """The MSI-X capability (PCI 3.0, 6.8.2)."""

    CONTROL = (2, 2, MsixControl.FUNCTION_MASK | MsixControl.ENABLE)
    TABLE = (4, 4)
    PENDING = (8, 4)


MAX_VECTORS = 0x800
"""The most vectors that an MSI-X table can have."""

VECTOR_ENTRY_SIZE = 16
"""Bytes of one entry of the MSI-X table."""


def pending_array_size(vectors: int) -> int:
    """Return the bytes of the MSI-X pending bit array: one bit per vector, in 64-bit words."""
    return -(-vectors // 64) * 8


def msix_capability(vectors: int, bar: int, pending_offset: int) -> Capability:
    """Return the MSI-X capability; the table is at the start of its BAR.

    Args:
        vectors: Entries of the table.
        bar: The BAR that holds the table and the pending bits.
        pending_offset: Where in the BAR the pending bits are; a multiple of 8.
    """
    registers = (vectors - 1, 2), (bar, 4), (pending_offset | bar, 4)
    body = b"".join(value.to_bytes(width, "little") for value, width in registers)
    return Capability(CapabilityId.MSIX, body)


class DeviceControl(IntFlag):
    """The device control register of PCI Express."""

    FUNCTION_LEVEL_RESET = 1 << 15
    """Written as 1 it resets the function; it reads 0."""


class Express(RegisterTable):
    """The PCI Express capability (PCIe 3.0, 7.8), as far as a function without a link has it."""

    FLAGS = (2, 2)
    DEVICE_CAPABILITIES = (4, 4)
    DEVICE_CONTROL = (8, 2, 0xFFFF)


EXPRESS_SIZE = 60
"""Bytes of version 2 of the capability."""

EXPRESS_ENDPOINT_V2 = 0x0002
"""FLAGS of an endpoint whose capability has version 2."""

EXPRESS_DEVICE_CAPABILITIES = 1 << 28 | 1 << 15
"""Function-level reset, and role-based error reporting, which every function must have."""


def express_capability() -> Capability:
    """Return a PCI Express capability with which the function can be reset on its own."""
    data = bytearray(EXPRESS_SIZE)
    Express.FLAGS.put(data, EXPRESS_ENDPOINT_V2)
    Express.DEVICE_CAPABILITIES.put(data, EXPRESS_DEVICE_CAPABILITIES)
    return Capability(CapabilityId.EXPRESS, bytes(data[2:]))

"""The PCI configuration space: bytes, and a mask that says which bits can be written.

BARs keep what is written to them above their size, so that a client can size and place them here;
QEMU does that on its own and merely tells us.
"""

from __future__ import annotations

from dataclasses import dataclass

from ballast.virtio_pci.layout import MSIX_BAR, NOTIFY_MULTIPLIER, Layout
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci import config_space as pci
from ballast_protocol.virtio.pci import structures
from ballast_protocol.virtio.pci.config_space import (
    Capability,
    CapabilityId,
    Command,
    DeviceControl,
    Express,
    Header,
    Msix,
    MsixControl,
    PciStatus,
)
from ballast_protocol.virtio.pci.registers import RegisterTable
from ballast_protocol.virtio.pci.structures import PciCfg, StructureType

_BUS_MASTER = int(Command.BUS_MASTER)
_MSIX_ENABLE = int(MsixControl.ENABLE) >> 8
"""In the upper byte of the control register."""

_COMMAND_AT = Header.COMMAND.offset
_WINDOW_LENGTHS = (1, 2, 4)


@dataclass(frozen=True)
class BarAccess:
    """The access that the PCI_CFG capability stands for at the moment.

    Attributes:
        bar: Which BAR.
        offset: Bytes from its start.
        length: Bytes: 1, 2 or 4.
    """

    bar: int
    offset: int
    length: int


class ConfigSpace:
    """The configuration space of one function."""

    def __init__(self, device_id: int, class_code: int, layout: Layout) -> None:
        """Make the space as it is after a reset.

        Args:
            device_id: The virtio device type.
            class_code: The PCI class, sub-class and interface as a 24-bit number.
            layout: Where the structures are.
        """
        self._layout = layout
        self._mask = bytearray(layout.config_space_size)
        self._image = bytearray(layout.config_space_size)
        self._places: dict[CapabilityId, int] = {}
        self._window = 0
        self._msix_control: int | None = None
        self._put_header(device_id, class_code)
        self._put_bar_masks()
        self._put_capabilities()
        self._initial = bytes(self._image)

    # Making it -------------------------------------------------------------------------------

    def _put_header(self, device_id: int, class_code: int) -> None:
        values = {
            Header.VENDOR_ID: structures.VENDOR_ID,
            Header.DEVICE_ID: structures.DEVICE_ID_BASE + device_id,
            Header.STATUS: PciStatus.CAPABILITIES,
            Header.REVISION: structures.REVISION,
            Header.CLASS_CODE: class_code,
            Header.SUBSYSTEM_VENDOR_ID: structures.VENDOR_ID,
            Header.SUBSYSTEM_ID: structures.SUBSYSTEM_ID,
            Header.CAPABILITIES: pci.FIRST_CAPABILITY,
            Header.INTERRUPT_PIN: pci.INTERRUPT_PIN_A,
        }
        for register, value in values.items():
            register.put(self._image, value)
        self._allow(Header, 0)

    def _put_bar_masks(self) -> None:
        """Let the address bits of each BAR be written; 32-bit memory BARs have zeros below."""
        for bar, size in enumerate(self._layout.bars):
            if size:
                Header.BAR0.put(self._mask, pci.ALL_BITS & -size, base=4 * bar)

    def _put_capabilities(self) -> None:
        layout = self._layout
        window = structures.pci_cfg_capability()
        wanted = [*_structure_capabilities(layout), window]
        if layout.vectors:
            wanted.append(pci.msix_capability(layout.vectors, MSIX_BAR, layout.pending_offset))
        if layout.has_function_reset:
            wanted.append(pci.express_capability())
        for placed in pci.place_capabilities(wanted):
            self._image[placed.offset : placed.offset + len(placed.data)] = placed.data
            self._places[placed.capability.id] = placed.offset
            if placed.capability is window:
                self._window = placed.offset
        self._allow(PciCfg, self._window)
        if layout.vectors:
            self._allow(Msix, self._places[CapabilityId.MSIX])
            self._msix_control = self._places[CapabilityId.MSIX] + Msix.CONTROL.offset
        if layout.has_function_reset:
            self._allow(Express, self._places[CapabilityId.EXPRESS])

    def _allow(self, table: type[RegisterTable], base: int) -> None:
        """Make the writable bits of a table's registers writable."""
        for register in table:
            register.put(self._mask, register.writable, base)

    # Accesses --------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes as they are, without effects; fewer where the space ends."""
        return bytes(self._image[offset : offset + size]) if offset >= 0 else b""

    def write(self, offset: int, data: bytes) -> bool:
        """Take the bits that can be written.

        Returns:
            Whether the bytes lie in the space.
        """
        end = offset + len(data)
        if offset < 0 or end > len(self._image):
            return False
        mask = int.from_bytes(self._mask[offset:end], "little")
        old = int.from_bytes(self._image[offset:end], "little")
        new = old & ~mask | int.from_bytes(data, "little") & mask
        self._image[offset:end] = new.to_bytes(len(data), "little")
        return True

    def reset(self) -> None:
        """Return to the state after a reset of the function."""
        self._image[:] = self._initial

    def restore(self, image: bytes) -> None:
        """Take over the bytes that a predecessor had.

        Raises:
            InternalError: It was another function.
        """
        mask, old, new = (
            int.from_bytes(each, "little") for each in (self._mask, self._initial, image)
        )
        if len(image) != len(self._initial) or (old ^ new) & ~mask:
            raise InternalError("the saved configuration space is that of another function")
        self._image[:] = image

    # What the registers say ------------------------------------------------------------------

    @property
    def command(self) -> Command:
        """The COMMAND register."""
        return Command(Header.COMMAND.get(self._image))

    @property
    def is_bus_master(self) -> bool:
        """Whether the function may access memory; asked for at each notification."""
        return bool(self._image[_COMMAND_AT] & _BUS_MASTER)

    @property
    def is_msix_enabled(self) -> bool:
        """Whether the driver has enabled MSI-X; asked for at each interrupt."""
        at = self._msix_control
        return at is not None and bool(self._image[at + 1] & _MSIX_ENABLE)

    @property
    def is_reset_wanted(self) -> bool:
        """Whether a function-level reset has been asked for."""
        place = self._places.get(CapabilityId.EXPRESS)
        if place is None:
            return False
        control = Express.DEVICE_CONTROL.get(self._image, place)
        return bool(control & DeviceControl.FUNCTION_LEVEL_RESET)

    # The window into the BARs ----------------------------------------------------------------

    def is_window_access(self, offset: int, size: int) -> bool:
        """Return whether an access has to do with the data of the PCI_CFG capability.

        One of more than 4 bytes has not: clients copy the whole space, which must not have effects.
        """
        start = self._window + PciCfg.DATA.offset
        return 0 < size <= PciCfg.DATA.width and offset < start + 4 and start < offset + size

    def window_access(self) -> BarAccess | None:
        """Return what the PCI_CFG capability stands for; None if that is no legal access."""
        bar, offset, length = (
            register.get(self._image, self._window)
            for register in (PciCfg.BAR, PciCfg.OFFSET, PciCfg.LENGTH)
        )
        if bar >= pci.BAR_COUNT or length not in _WINDOW_LENGTHS or offset % length:
            return None
        return BarAccess(bar, offset, length)

    @property
    def window_data(self) -> bytes:
        """The four bytes of `pci_cfg_data`."""
        return PciCfg.DATA.get(self._image, self._window).to_bytes(4, "little")

    def put_window_data(self, data: bytes) -> None:
        """Set the first bytes of `pci_cfg_data`."""
        start = self._window + PciCfg.DATA.offset
        self._image[start : start + len(data)] = data


def _structure_capabilities(layout: Layout) -> list[Capability]:
    """Return the capabilities that locate the structures in their BAR."""
    places = [
        (StructureType.COMMON, layout.common),
        (StructureType.ISR, layout.isr),
        (StructureType.DEVICE, layout.device),
    ]
    located = [
        structures.structure_capability(kind, window.bar, window.offset, window.length)
        for kind, window in places
        if window is not None
    ]
    notify = layout.notify
    return [
        *located,
        structures.notify_capability(notify.bar, notify.offset, notify.length, NOTIFY_MULTIPLIER),
    ]

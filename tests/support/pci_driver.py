"""A device for virtio-pci to carry, and a driver that goes about it as Linux does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ballast.virtio_pci.device import VirtioPci
from ballast.virtio_pci.effects import Effects, QueueNotified
from ballast.virtio_pci.layout import CONFIG_REGION, Variant, make_layout
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.config_space import (
    CapabilityId,
    Command,
    Express,
    Header,
    Msix,
    MsixControl,
)
from ballast_protocol.virtio.pci.structures import (
    NO_VECTOR,
    Common,
    DeviceStatus,
    PciCfg,
    StructureType,
)

FEATURES = int(VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.RING_RESET) | 0b101
QUEUES = 3
QUEUE_SIZE = 128


class Device:
    """A virtio device that only has a configuration.

    Attributes:
        config: Its bytes.
        features: What it offers.
        written: What was written, in order.
    """

    device_id = 5
    queue_count = QUEUES

    def __init__(
        self, config: bytes = b"configuration!!!", queue_max_size: int = QUEUE_SIZE
    ) -> None:
        self.config = bytearray(config)
        self.config_size = len(config)
        self.queue_max_size = queue_max_size
        self.features = FEATURES
        self.written: list[tuple[int, bytes]] = []

    def read_config(self, offset: int, size: int) -> bytes:
        assert 0 <= offset < offset + size <= self.config_size
        return bytes(self.config[offset : offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= self.config_size
        self.config[offset : offset + len(data)] = data
        self.written.append((offset, data))


def write(pci: VirtioPci, region: int, offset: int, data: bytes) -> Effects:
    """Write as a client, after having asked for the short cut that must say the same."""
    notified = pci.notified_queue(region, offset, len(data))
    effects = pci.write(region, offset, data)
    if notified is not None:
        assert effects == (QueueNotified(notified),)
    elif region != CONFIG_REGION and len(data) <= 4:
        assert not any(isinstance(each, QueueNotified) for each in effects)
    return effects


def function(
    variant: Variant = Variant.MSIX, device: Device | None = None, *, flr: bool = True
) -> VirtioPci:
    """Return a function that nobody has touched."""
    device = device or Device()
    layout = make_layout(
        variant,
        queue_count=device.queue_count,
        config_size=device.config_size,
        has_function_reset=flr,
    )
    return VirtioPci(device, layout)


@dataclass(frozen=True)
class Place:
    """Where a driver found a structure."""

    bar: int
    offset: int
    length: int
    capability: int


class PciDriver:
    """Drives a function by nothing but accesses of its regions.

    Attributes:
        pci: The function.
        structures: Where the structures are, as the capabilities say.
        multiplier: Bytes between two notification addresses.
        capabilities: Where the first capability of each kind is.
    """

    def __init__(self, pci: VirtioPci) -> None:
        self.pci = pci
        self.structures: dict[int, Place] = {}
        self.capabilities: dict[int, int] = {}
        self.multiplier = 0
        for offset in self._walk():
            self._note(offset)

    def _walk(self) -> Iterator[int]:
        offset = self.config(Header.CAPABILITIES.offset, 1)
        while offset:
            yield offset
            offset = self.config(offset + 1, 1)

    def _note(self, offset: int) -> None:
        kind = self.config(offset, 1)
        self.capabilities.setdefault(kind, offset)
        if kind != CapabilityId.VENDOR:
            return
        cfg_type, bar = self.config(offset + 3, 1), self.config(offset + 4, 1)
        place = Place(bar, self.config(offset + 8, 4), self.config(offset + 12, 4), offset)
        self.structures.setdefault(cfg_type, place)
        if cfg_type == StructureType.NOTIFY:
            self.multiplier = self.config(offset + 16, 4)

    # Accesses

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.pci.read(CONFIG_REGION, offset, size), "little")

    def set_config(self, offset: int, size: int, value: int) -> Effects:
        return self.pci.write(CONFIG_REGION, offset, value.to_bytes(size, "little"))

    def read(self, kind: StructureType, offset: int, size: int) -> int:
        place = self.structures[kind]
        return int.from_bytes(self.pci.read(place.bar, place.offset + offset, size), "little")

    def write(self, kind: StructureType, offset: int, size: int, value: int) -> Effects:
        place = self.structures[kind]
        return write(self.pci, place.bar, place.offset + offset, value.to_bytes(size, "little"))

    def get(self, register: Common) -> int:
        return self.read(StructureType.COMMON, register.offset, register.width)

    def put(self, register: Common, value: int) -> Effects:
        return self.write(StructureType.COMMON, register.offset, register.width, value)

    def isr(self) -> int:
        return self.read(StructureType.ISR, 0, 1)

    def notify(self, index: int) -> Effects:
        self.put(Common.QUEUE_SELECT, index)
        offset = self.get(Common.QUEUE_NOTIFY_OFF) * self.multiplier
        return self.write(StructureType.NOTIFY, offset, 2, index)

    def set_command(self, command: int) -> Effects:
        return self.set_config(Header.COMMAND.offset, 2, command)

    def set_msix(self, control: int) -> Effects:
        base = self.capabilities[CapabilityId.MSIX]
        return self.set_config(base + Msix.CONTROL.offset, 2, control)

    def reset_function(self) -> Effects:
        base = self.capabilities[CapabilityId.EXPRESS]
        return self.set_config(base + Express.DEVICE_CONTROL.offset, 2, 0x8000)

    # The window of PCI_CFG

    def aim(self, bar: int, offset: int, length: int) -> int:
        base = self.structures[StructureType.PCI_CFG].capability
        self.set_config(base + PciCfg.BAR.offset, 1, bar)
        self.set_config(base + PciCfg.OFFSET.offset, 4, offset)
        self.set_config(base + PciCfg.LENGTH.offset, 4, length)
        return base + PciCfg.DATA.offset

    # What Linux does, in its order

    def offered(self) -> int:
        self.put(Common.DEVICE_FEATURE_SELECT, 0)
        low = self.get(Common.DEVICE_FEATURE)
        self.put(Common.DEVICE_FEATURE_SELECT, 1)
        return low | self.get(Common.DEVICE_FEATURE) << 32

    def accept(self, features: int) -> None:
        for word in (0, 1):
            self.put(Common.DRIVER_FEATURE_SELECT, word)
            self.put(Common.DRIVER_FEATURE, features >> 32 * word & 0xFFFF_FFFF)

    def add_status(self, status: int) -> Effects:
        return self.put(Common.DEVICE_STATUS, self.get(Common.DEVICE_STATUS) | status)

    def negotiate(self, features: int | None = None) -> bool:
        """Go as far as FEATURES_OK; return whether the device agreed."""
        self.put(Common.DEVICE_STATUS, 0)
        assert self.get(Common.DEVICE_STATUS) == 0
        self.set_command(Command.MEMORY | Command.BUS_MASTER)
        self.add_status(DeviceStatus.ACKNOWLEDGE)
        self.add_status(DeviceStatus.DRIVER)
        self.accept(self.offered() if features is None else features)
        self.add_status(DeviceStatus.FEATURES_OK)
        return bool(self.get(Common.DEVICE_STATUS) & DeviceStatus.FEATURES_OK)

    def enable_msix(self) -> None:
        self.set_msix(MsixControl.ENABLE | MsixControl.FUNCTION_MASK)
        self.set_msix(MsixControl.ENABLE)

    def set_up_queue(self, index: int, vector: int = NO_VECTOR) -> None:
        """Tell the device where a queue is: at 0x1_0001_0000 and so on, by its index."""
        assert index < self.get(Common.NUM_QUEUES)
        self.put(Common.QUEUE_SELECT, index)
        size = self.get(Common.QUEUE_SIZE)
        assert size
        assert not self.get(Common.QUEUE_ENABLE)
        self.put(Common.QUEUE_SIZE, size)
        for number, low in enumerate(
            (Common.QUEUE_DESC_LOW, Common.QUEUE_DRIVER_LOW, Common.QUEUE_DEVICE_LOW)
        ):
            self.write(
                StructureType.COMMON, low.offset, 4, ring_address(index, number) & 0xFFFFFFFF
            )
            self.write(StructureType.COMMON, low.offset + 4, 4, ring_address(index, number) >> 32)
        if vector != NO_VECTOR:
            self.put(Common.QUEUE_MSIX_VECTOR, vector)
            assert self.get(Common.QUEUE_MSIX_VECTOR) == vector

    def enable_queue(self, index: int) -> Effects:
        self.put(Common.QUEUE_SELECT, index)
        return self.put(Common.QUEUE_ENABLE, 1)

    def start(self, *, with_msix: bool = False) -> Effects:
        """Bring the device up; return what followed from DRIVER_OK."""
        assert self.negotiate()
        if with_msix:
            self.enable_msix()
            self.put(Common.CONFIG_MSIX_VECTOR, 0)
            assert self.get(Common.CONFIG_MSIX_VECTOR) == 0
        for index in range(self.get(Common.NUM_QUEUES)):
            self.set_up_queue(index, index + 1 if with_msix else NO_VECTOR)
        for index in range(self.get(Common.NUM_QUEUES)):
            self.enable_queue(index)
        return self.add_status(DeviceStatus.DRIVER_OK)


def ring_address(index: int, number: int) -> int:
    """Return where the driver puts a part of a queue: 0 descriptors, 1 its ring, 2 the device's."""
    return 0x1_0000_0000 * (number + 1) + 0x1_0000 * (index + 1)

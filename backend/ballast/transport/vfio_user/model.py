"""The balloon as virtio-pci sees a device, and the function as vfio-user describes it."""

from __future__ import annotations

from dataclasses import replace

from ballast.balloon.device import BalloonDevice
from ballast.virtio_pci.layout import CONFIG_REGION, STRUCTURE_BAR, Layout
from ballast_protocol.vfio_user.codes import DeviceFlag, IrqFlag, PciIrq, RegionFlag
from ballast_protocol.vfio_user.device import Area, Device, Irq, Region, SparseMmap
from ballast_protocol.virtio.balloon import DEVICE_ID, BalloonConfig, BalloonQueue

QUEUE_SIZE = 128
"""Entries of each queue, as in QEMU's own balloon."""

_REGION_COUNT = 9
"""BARs, expansion ROM, configuration space and VGA."""

_ACTUAL_OFFSET, _POISON_OFFSET = 4, 12


class BalloonModel:
    """Implements `virtio_pci.model.DeviceModel` for the balloon."""

    device_id = DEVICE_ID
    queue_count = len(BalloonQueue)
    queue_max_size = QUEUE_SIZE
    config_size = BalloonConfig.SIZE

    def __init__(self, device: BalloonDevice) -> None:
        self._device = device

    @property
    def features(self) -> int:
        """The feature bits offered to the driver."""
        return self._device.offered

    def read_config(self, offset: int, size: int) -> bytes:
        """Return bytes of the config space."""
        return self._device.config.pack()[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write of one field; those that only the device writes are left alone."""
        self._device.metrics.config_writes += 1
        patched = self._device.config.patched(offset, data)
        if offset <= _ACTUAL_OFFSET < offset + len(data):
            self._device.write_actual(patched.actual)
        if offset <= _POISON_OFFSET < offset + len(data):
            self._device.write_poison(patched.poison_val)


def describe(layout: Layout) -> Device:
    """Return the function's regions and interrupts, as the client asks for them."""
    regions = [Region(layout.region_size(index)) for index in range(_REGION_COUNT)]
    if layout.mapped is not None:
        area = Area(layout.mapped.offset, layout.mapped.length)
        regions[STRUCTURE_BAR] = replace(
            regions[STRUCTURE_BAR],
            flags=RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP,
            capabilities=(SparseMmap((area,)),),
        )
    regions[CONFIG_REGION] = Region(layout.config_space_size)
    irqs = [Irq(0)] * (max(PciIrq) + 1)
    irqs[PciIrq.INTX] = Irq(1, IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED)
    # Never raised, which would stop the VM; QEMU warns about a device that cannot.
    irqs[PciIrq.ERR] = Irq(1)
    irqs[PciIrq.MSIX] = Irq(layout.vectors, IrqFlag.EVENTFD | IrqFlag.NORESIZE)
    return Device(tuple(regions), tuple(irqs), DeviceFlag.PCI | DeviceFlag.RESET)

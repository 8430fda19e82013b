from __future__ import annotations

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.transport.vfio_user.model import BalloonModel, describe
from ballast.virtio_pci.layout import CONFIG_REGION, STRUCTURE_BAR, Variant, make_layout
from ballast_protocol.vfio_user.codes import IrqFlag, PciIrq, RegionFlag
from ballast_protocol.vfio_user.device import SparseMmap
from ballast_protocol.virtio.features import VirtioFeature
from support.backend import Listener

RAM = 16 << 20


@pytest.fixture
def device() -> BalloonDevice:
    return BalloonDevice(Listener(), ram_bytes=RAM)


def test_the_driver_writes_its_own_fields_only(device: BalloonDevice) -> None:
    model = BalloonModel(device)
    device.set_target(RAM // 2)
    model.write_config(12, b"\xaa\0\0\0")
    device.start(int(VirtioFeature.VERSION_1) | 1 << 4, fresh=True)
    model.write_config(0, b"\1\2\3\4")
    model.write_config(4, b"\7\0\0\0")
    model.write_config(8, b"\xff\xff\xff\xff")
    assert model.read_config(0, 16) == device.config.pack()
    assert model.read_config(4, 1) == b"\7"
    assert (device.actual_pages, device.config.poison_val) == (7, 0xAA)
    assert device.target_pages == RAM // 2 >> 12


@pytest.mark.parametrize("variant", list(Variant))
def test_the_function_is_described(device: BalloonDevice, variant: Variant) -> None:
    model = BalloonModel(device)
    layout = make_layout(variant, queue_count=model.queue_count, config_size=model.config_size)
    found = describe(layout)
    assert len(found.regions) == 9
    assert found.regions[CONFIG_REGION].size == layout.config_space_size
    bar = found.regions[STRUCTURE_BAR]
    if variant is Variant.MSIX_MAPPED:
        (sparse,) = bar.capabilities
        assert isinstance(sparse, SparseMmap)
        (area,) = sparse.areas
        assert layout.device is not None
        assert (area.offset, area.size) == (layout.device.offset, layout.device.length)
        # Nobody would hear of a notification that is written to a mapped page.
        assert not area.offset <= layout.notify.offset < area.offset + area.size
    else:
        assert not bar.flags & RegionFlag.MMAP
    assert found.irqs[PciIrq.MSIX].count == (0 if variant is Variant.INTX else 6)
    assert found.irqs[PciIrq.INTX].flags & IrqFlag.AUTOMASKED


def test_ring_reset_is_not_offered(device: BalloonDevice) -> None:
    assert not BalloonModel(device).features & VirtioFeature.RING_RESET

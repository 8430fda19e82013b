"""Payloads and headers against hex: QEMU's shapes on a little-endian host."""

from __future__ import annotations

import sys

import pytest

from ballast_protocol.errors import TruncatedError
from ballast_protocol.vfio_user.codes import (
    Command,
    DeviceFlag,
    DmaMapFlag,
    DmaUnmapFlag,
    FeatureFlag,
    HeaderFlag,
    IrqFlag,
    IrqSetFlag,
    PciIrq,
    PciRegion,
    RegionFlag,
    name_of,
)
from ballast_protocol.vfio_user.message import (
    CapabilityHead,
    DeviceInfo,
    DmaAccess,
    DmaMapping,
    DmaUnmapping,
    FeatureHead,
    Header,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    VersionHead,
    WriteCount,
    pack_message,
)
from ballast_protocol.wire import Wire

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the hex is little-endian")

LAYOUTS: list[tuple[Wire, str]] = [
    (Header(1, Command.DMA_MAP, 48), "0100 0200 30000000 00000000 00000000"),
    (
        Header(0xFFFF, Command.REGION_READ, 16, HeaderFlag.REPLY | HeaderFlag.ERROR, 22),
        "ffff 0900 10000000 21000000 16000000",
    ),
    (
        Header(3, Command.REGION_WRITE, 34, HeaderFlag.NO_REPLY),
        "0300 0a00 22000000 10000000 00000000",
    ),
    (VersionHead(0, 1), "0000 0100"),
    (
        DmaMapping(32, DmaMapFlag.READ | DmaMapFlag.WRITE, 0xC0000, 0xC0000, 0x7FF40000),
        "20000000 03000000 00000c0000000000 00000c0000000000 0000f47f00000000",
    ),
    (
        DmaUnmapping(24, DmaUnmapFlag.ALL, 0x1000, 0x2000),
        "18000000 02000000 0010000000000000 0020000000000000",
    ),
    (
        DeviceInfo(16, DeviceFlag.RESET | DeviceFlag.PCI, 9, 5),
        "10000000 03000000 09000000 05000000",
    ),
    (
        RegionInfo(64, RegionFlag(15), 0, 32, 0x4000, 0x1000),
        "40000000 0f000000 00000000 20000000 0040000000000000 0010000000000000",
    ),
    (CapabilityHead(1, 1, 0x40), "0100 0100 40000000"),
    (RegionIoFds(56, 0, 2, 1), "38000000 00000000 02000000 01000000"),
    (
        IrqInfo(16, IrqFlag.EVENTFD | IrqFlag.NORESIZE, 2, 6),
        "10000000 09000000 02000000 06000000",
    ),
    (
        IrqSet(20, IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER, 2, 3, 1),
        "14000000 24000000 02000000 03000000 01000000",
    ),
    (RegionAccess(0x3000, 0, 2), "0030000000000000 00000000 02000000"),
    (WriteCount(200), "c800000000000000"),
    (DmaAccess(0x100000000, 4096), "0000000001000000 0010000000000000"),
    (FeatureHead(8, FeatureFlag(FeatureFlag.PROBE | 2)), "08000000 02000400"),
    (MigrationData(16, 8), "10000000 08000000"),
]


@pytest.mark.parametrize(("value", "text"), LAYOUTS, ids=lambda item: type(item).__name__)
def test_layout(value: Wire, text: str) -> None:
    data = bytes.fromhex(text)
    assert value.pack() == data
    assert type(value).unpack(data) == value
    assert type(value).unpack(data + b"next") == value
    for size in range(len(data)):
        with pytest.raises(TruncatedError):
            type(value).unpack(data[:size])


def test_whole_message() -> None:
    found = pack_message(5, Command.REGION_READ, RegionAccess(0, 7, 4).pack())
    assert found == bytes.fromhex(
        "0500 0900 20000000 00000000 00000000 0000000000000000 07000000 04000000"
    )


def test_codes_are_the_specifications() -> None:
    assert [int(command) for command in Command] == list(range(1, 19))
    assert [int(region) for region in PciRegion] == list(range(9))
    assert [int(irq) for irq in PciIrq] == list(range(5))
    assert [int(flag) for flag in IrqSetFlag] == [1, 2, 4, 8, 16, 32]
    assert (HeaderFlag.NO_REPLY, HeaderFlag.ERROR) == (0x10, 0x20)
    assert (FeatureFlag.GET, FeatureFlag.SET, FeatureFlag.PROBE) == (0x10000, 0x20000, 0x40000)


def test_names() -> None:
    assert name_of(8) == "DEVICE_SET_IRQS"
    assert name_of(99) == "command 99"

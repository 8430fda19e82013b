"""What a device may not be, and chains of region capabilities."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ballast_protocol.errors import InternalError
from ballast_protocol.vfio_user.codes import RegionFlag
from ballast_protocol.vfio_user.device import (
    MAX_IRQ_TYPES,
    MAX_REGIONS,
    Area,
    Device,
    Irq,
    MsixMappable,
    Region,
    RegionType,
    SparseMmap,
)
from ballast_protocol.vfio_user.message import CapabilityHead, RegionInfo

MAPPED = RegionFlag.READ | RegionFlag.MMAP


@pytest.mark.parametrize(
    "make",
    [
        lambda: Device((Region(0),) * (MAX_REGIONS + 1), ()),
        lambda: Device((), (Irq(0),) * (MAX_IRQ_TYPES + 1)),
        lambda: Device((), (Irq(2049),)),
        lambda: Device((Region(-1),), ()),
        lambda: Device((Region(1 << 63),), ()),
        lambda: Device((Region(16, RegionFlag.CAPS),), ()),
        lambda: Device((Region(4096, capabilities=(SparseMmap((Area(0, 4096),)),)),), ()),
        lambda: Device((Region(4096, MAPPED, (SparseMmap((Area(4096, 4096),)),)),), ()),
        lambda: Device((Region(4096, MAPPED, (SparseMmap((Area(0, 0),)),)),), ()),
    ],
)
def test_a_device_that_cannot_be_described_is_our_own_fault(make: Callable[[], Device]) -> None:
    with pytest.raises(InternalError):
        make()


def test_a_chain_of_capabilities() -> None:
    areas = (Area(0, 4096), Area(8192, 4096))
    chain = (MsixMappable(), SparseMmap(areas), RegionType(0x8000, 3))
    device = Device((Region(1 << 14, MAPPED, chain),), ())
    payload, with_fds = device.region_info(0, 1000)
    assert with_fds
    info = RegionInfo.unpack(payload)
    assert info.argsz == len(payload) == 32 + 8 + 48 + 16
    assert info.flags == MAPPED | RegionFlag.CAPS
    found, at = [], info.capability_offset
    while at:
        assert at % 8 == 0
        head = CapabilityHead.unpack(payload, at)
        found.append((head.kind, head.version, payload[at + 8 : head.next or None]))
        at = head.next
    assert found == [
        (3, 1, b""),
        (
            1,
            1,
            bytes.fromhex("02000000 00000000 0000000000000000 0010000000000000")
            + bytes.fromhex("0020000000000000 0010000000000000"),
        ),
        (2, 1, bytes.fromhex("00800000 03000000")),
    ]


def test_a_region_with_capabilities_needs_no_file() -> None:
    device = Device((Region(4096, RegionFlag.READ, (RegionType(1, 2),)),), ())
    payload, with_fds = device.region_info(0, 48)
    assert not with_fds
    assert RegionInfo.unpack(payload).flags == RegionFlag.READ | RegionFlag.CAPS

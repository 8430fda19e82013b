"""Payloads and headers against hex: QEMU's shapes on a little-endian host."""

from __future__ import annotations

import sys

import pytest

from ballast_protocol.errors import MalformedError, PeerError, TruncatedError
from ballast_protocol.vhost_user import message
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    BackendRequest,
    ConfigAccess,
    ConfigFlag,
    DeviceStateTransfer,
    Header,
    HeaderFlag,
    LogDescription,
    MemoryRegion,
    MigrationPhase,
    ProtocolFeature,
    Request,
    TransferDirection,
    U64Payload,
    VringAddress,
    VringAddrFlag,
    VringState,
    pack_message,
    pack_region_table,
    pack_single_region,
    unpack_region_table,
    unpack_single_region,
)
from ballast_protocol.wire import Wire

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the hex is little-endian")

LOW = MemoryRegion(0, 0xA0000, 0x7F0000000000, 0)
HIGH = MemoryRegion(0x100000000, 0x40000000, 0x7F0080000000, 0x80000000)
LOW_HEX = "0000000000000000 00000a0000000000 00000000007f0000 0000000000000000"
HIGH_HEX = "0000000001000000 0000004000000000 00000080007f0000 0000008000000000"

LAYOUTS: list[tuple[Wire, str]] = [
    (Header(1, HeaderFlag.VERSION, 0), "01000000 01000000 00000000"),
    (
        Header(Request.SET_CONFIG, HeaderFlag.VERSION | HeaderFlag.NEED_REPLY, 28),
        "19000000 09000000 1c000000",
    ),
    (Header(Request.GET_CONFIG, REPLY_FLAGS, 28), "18000000 05000000 1c000000"),
    (U64Payload(0x6FFFFF), "ffff6f0000000000"),
    (VringState(4, 0x80008000), "04000000 00800080"),
    (
        VringAddress(2, VringAddrFlag.LOG, 0x7F0000001000, 0x7F0000002000, 0x7F0000001800, 0x9000),
        "02000000 01000000 00100000007f0000 00200000007f0000 00180000007f0000 0090000000000000",
    ),
    (LOW, LOW_HEX),
    (LogDescription(0x10000, 0x1000), "0000010000000000 0010000000000000"),
    (ConfigAccess(0, 16), "00000000 10000000 00000000"),
    (ConfigAccess(4, 4, ConfigFlag.LIVE_MIGRATION), "04000000 04000000 01000000"),
    (
        DeviceStateTransfer(TransferDirection.LOAD, MigrationPhase.STOPPED),
        "01000000 00000000",
    ),
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
    found = pack_message(Request.SET_VRING_NUM, VringState(1, 128).pack())
    assert found == bytes.fromhex("08000000 01000000 08000000 01000000 80000000")


def test_need_reply() -> None:
    assert Header(1, HeaderFlag(9), 0).need_reply
    assert not Header(1, HeaderFlag(1), 0).need_reply


def test_region_table() -> None:
    data = bytes.fromhex("02000000 00000000" + LOW_HEX + HIGH_HEX)
    assert pack_region_table((LOW, HIGH)) == data
    assert unpack_region_table(data) == (LOW, HIGH)
    assert unpack_region_table(bytes(8)) == ()
    for size in range(len(data)):
        with pytest.raises(PeerError):
            unpack_region_table(data[:size])


def test_region_table_that_lies_about_its_size() -> None:
    data = pack_region_table((LOW, HIGH))
    with pytest.raises(MalformedError, match="2 memory regions in a payload of 73 bytes"):
        unpack_region_table(data + b"x")
    with pytest.raises(MalformedError, match="9 memory regions, where 8 are the most"):
        unpack_region_table(b"\x09" + data[1:])


def test_single_region() -> None:
    data = bytes.fromhex("0000000000000000" + HIGH_HEX)
    assert len(data) == message.SINGLE_REGION_SIZE == 40
    assert pack_single_region(HIGH) == data
    assert unpack_single_region(data) == HIGH
    for size in range(len(data)):
        with pytest.raises(TruncatedError):
            unpack_single_region(data[:size])


@pytest.mark.parametrize(
    ("region", "complaint"),
    [
        (MemoryRegion(0x1000, 0, 0, 0), "0x1000 is empty"),
        (MemoryRegion((1 << 64) - 0x1000, 0x2000, 0, 0), "wraps around"),
        (MemoryRegion(0, 0x2000, (1 << 64) - 0x1000, 0), "wraps around"),
        (MemoryRegion(0, 0x2000, 0, (1 << 64) - 0x1000), "wraps around"),
    ],
)
def test_impossible_regions(region: MemoryRegion, complaint: str) -> None:
    with pytest.raises(MalformedError, match=complaint):
        unpack_single_region(pack_single_region(region))
    with pytest.raises(MalformedError, match=complaint):
        unpack_region_table(pack_region_table((region,)))


def test_a_region_may_end_at_the_end_of_the_address_space() -> None:
    last = MemoryRegion((1 << 64) - 0x1000, 0x1000, 0, 0)
    assert unpack_single_region(pack_single_region(last)) == last


def test_codes_are_the_specifications() -> None:
    assert [int(request) for request in Request] == list(range(1, 45))
    assert [int(request) for request in BackendRequest] == list(range(1, 11))
    assert [int(feature) for feature in ProtocolFeature] == [1 << bit for bit in range(23)]
    assert (Request.GET_CONFIG.value, Request.ADD_MEM_REG.value) == (24, 37)
    assert ProtocolFeature.CONFIGURE_MEM_SLOTS == 1 << 15
    assert ProtocolFeature.GPA_ADDRESSES == 1 << 21
    assert REPLY_FLAGS == 5

"""What VERSION says: parsed within bounds, agreed on, and never longer than what was asked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import MalformedError, PeerError
from ballast_protocol.vfio_user.capabilities import (
    DEFAULT_CAPABILITIES,
    Capabilities,
    EffectiveCapabilities,
    effective,
    encode_capabilities,
    negotiate,
    parse_capabilities,
)
from support.vfio_messages import QEMU_VERSION

QEMU = Capabilities(1048576, 16, 65535, 4096, True)


def wrap(members: object) -> bytes:
    return json.dumps({"capabilities": members}).encode() + b"\0"


def test_qemus() -> None:
    assert parse_capabilities(QEMU_VERSION) == QEMU


@pytest.mark.parametrize("data", [b"", b"{}\0", wrap({}), wrap({"twin_socket": {"a": 1}})])
def test_nothing_said_means_the_defaults(data: bytes) -> None:
    found = parse_capabilities(data)
    assert found == Capabilities()
    assert effective(found) == EffectiveCapabilities(1 << 20, 1, 65535, 4096, False)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"\0",
        b"[]\0",
        b"7\0",
        b'{"capabilities":[]}\0',
        b"{\xff}\0",
        b"{}\0\0",
        b"[" * 4000 + b"\0",
        b'{"capabilities":{"pgsizes":' + b"9" * 4000 + b"}}\0",
        wrap({"max_msg_fds": 0}),
        wrap({"max_msg_fds": -1}),
        wrap({"max_msg_fds": True}),
        wrap({"max_msg_fds": 1.5}),
        wrap({"max_msg_fds": "1"}),
        wrap({"max_dma_maps": None}),
        wrap({"pgsizes": 1 << 64}),
        wrap({"write_multiple": 1}),
        b'{"capabilities":{"max_msg_fds":NaN}}\0',
        b"{}".ljust(4096) + b"\0",
    ],
)
def test_what_is_no_such_json_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(MalformedError, match="capabilit"):
        parse_capabilities(data)


@given(st.binary(max_size=100).map(lambda data: data + b"\0"))
def test_any_bytes_parse_or_are_the_peers_fault(data: bytes) -> None:
    try:
        parse_capabilities(data)
    except PeerError:
        return
    assert json.loads(data[:-1]) is not None


@pytest.mark.parametrize(
    ("proposed", "offered", "expected"),
    [
        (QEMU, DEFAULT_CAPABILITIES, DEFAULT_CAPABILITIES),
        (Capabilities(), DEFAULT_CAPABILITIES, Capabilities()),
        (QEMU, Capabilities(), Capabilities()),
        (
            Capabilities(4096, 1, 8, 0x3000, False),
            DEFAULT_CAPABILITIES,
            Capabilities(4096, 16, 8, 0x1000, None),
        ),
        (QEMU, Capabilities(512, 2, 3, 0x1000), Capabilities(512, 2, 3, 0x1000)),
        (Capabilities(max_msg_fds=8), DEFAULT_CAPABILITIES, Capabilities(max_msg_fds=16)),
    ],
)
def test_the_reply_is_a_subset_within_the_clients_numbers(
    proposed: Capabilities, offered: Capabilities, expected: Capabilities
) -> None:
    assert negotiate(proposed, offered, room=1000) == expected


@pytest.mark.parametrize("theirs", [0x2000, 0x10000])
def test_no_common_page_size_is_fatal(theirs: int) -> None:
    with pytest.raises(MalformedError, match="page sizes"):
        negotiate(Capabilities(pgsizes=theirs), DEFAULT_CAPABILITIES, 1000)
    with pytest.raises(MalformedError, match="page sizes"):
        negotiate(Capabilities(), Capabilities(pgsizes=theirs), 1000)


def test_where_room_is_short_the_limits_stay_longest() -> None:
    whole = len(encode_capabilities(QEMU, 1000))
    assert whole < len(QEMU_VERSION)
    assert negotiate(QEMU, DEFAULT_CAPABILITIES, whole) == QEMU
    assert negotiate(QEMU, DEFAULT_CAPABILITIES, whole - 1) == Capabilities(
        1048576, 16, 65535, 4096
    )
    assert negotiate(QEMU, DEFAULT_CAPABILITIES, 50) == Capabilities(1048576)
    assert negotiate(QEMU, DEFAULT_CAPABILITIES, 10) == Capabilities()


@given(st.integers(0, 200))
def test_the_encoded_reply_fits_whatever_room_there_is(room: int) -> None:
    said = negotiate(QEMU, DEFAULT_CAPABILITIES, room)
    data = encode_capabilities(said, room)
    assert len(data) <= room
    assert parse_capabilities(data) == said

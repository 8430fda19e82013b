"""The back-end's channel: the notification in one piece and in two, and what comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import MalformedError, PeerError
from ballast_protocol.vhost_user.channel import (
    UNKNOWN_REQUEST,
    Acknowledgement,
    BackendChannel,
    ConfigChange,
)
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    BackendRequest,
    Header,
    HeaderFlag,
    U64Payload,
    pack_message,
)

CHANGE = BackendRequest.CONFIG_CHANGE


def acknowledgement(request: int, value: int = 0) -> bytes:
    return pack_message(request, U64Payload(value).pack(), REPLY_FLAGS)


@pytest.mark.parametrize(
    ("need_reply", "flags"),
    [(False, HeaderFlag.VERSION), (True, HeaderFlag.VERSION | HeaderFlag.NEED_REPLY)],
)
def test_config_change(need_reply: bool, flags: HeaderFlag) -> None:
    channel = BackendChannel()
    assert Header.unpack(channel.config_change(need_reply=need_reply)) == Header(2, flags, 0)
    if need_reply:
        assert channel.receive(acknowledgement(CHANGE)) == [Acknowledgement(CHANGE, 0)]
    with pytest.raises(PeerError, match="nobody asked"):
        channel.receive(acknowledgement(CHANGE))


@pytest.mark.parametrize("need_reply", [False, True])
def test_the_first_byte_leaves_both_ways_open(need_reply: bool) -> None:
    change = BackendChannel().split_config_change(need_reply=need_reply)
    assert len(change.first) == 1
    assert len(change.rest) == len(change.cancel) == Header.SIZE - 1
    flags = HeaderFlag.VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
    assert Header.unpack(change.first + change.rest) == Header(CHANGE, flags, 0)
    assert Header.unpack(change.first + change.cancel) == Header(0x102, flags, 0)


def test_the_two_parts_make_the_whole() -> None:
    change = BackendChannel().split_config_change()
    assert isinstance(change, ConfigChange)
    assert change.first + change.rest == BackendChannel().config_change()


def test_acknowledgements_come_back_in_order() -> None:
    channel = BackendChannel()
    channel.config_change(need_reply=True)
    channel.split_config_change(need_reply=True)
    channel.split_config_change(need_reply=True)
    data = acknowledgement(CHANGE) + acknowledgement(UNKNOWN_REQUEST, 1) + acknowledgement(CHANGE)
    expected = [
        Acknowledgement(CHANGE, 0),
        Acknowledgement(UNKNOWN_REQUEST, 1),
        Acknowledgement(CHANGE, 0),
    ]
    assert channel.receive(data) == expected


def test_acknowledgements_may_be_cut_anywhere() -> None:
    channel = BackendChannel()
    found = []
    data = b""
    for value in (0, 1, 7):
        channel.config_change(need_reply=True)
        data += acknowledgement(CHANGE, value)
    for position in range(len(data)):
        found += channel.receive(data[position : position + 1])
    assert [item.value for item in found] == [0, 1, 7]


def test_an_acknowledgement_of_something_else() -> None:
    channel = BackendChannel()
    channel.config_change(need_reply=True)
    with pytest.raises(PeerError, match="258, where 2 waits"):
        channel.receive(acknowledgement(UNKNOWN_REQUEST))


@pytest.mark.parametrize(
    "data",
    [
        pack_message(CHANGE, bytes(8)),
        pack_message(CHANGE, bytes(4), REPLY_FLAGS),
        pack_message(CHANGE, bytes(8), REPLY_FLAGS | HeaderFlag.NEED_REPLY),
        Header(CHANGE, REPLY_FLAGS, 1 << 31).pack(),
    ],
    ids=["not a reply", "short", "flags", "huge"],
)
def test_what_is_no_acknowledgement(data: bytes) -> None:
    channel = BackendChannel()
    channel.config_change(need_reply=True)
    with pytest.raises(MalformedError, match="no acknowledgement"):
        channel.receive(data)


@given(st.binary(max_size=64), st.integers(0, 3))
def test_garbage_is_the_peers_fault_and_nothing_else(data: bytes, asked: int) -> None:
    channel = BackendChannel()
    for _ in range(asked):
        channel.config_change(need_reply=True)
    try:
        found = channel.receive(data)
    except PeerError:
        return
    assert len(found) <= asked

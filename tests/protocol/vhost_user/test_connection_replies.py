"""The back-end's state machine: what goes out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ballast_protocol.errors import InternalError
from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.connection import BackendConnection
from ballast_protocol.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    ConfigAccess,
    HeaderFlag,
    LogDescription,
    ProtocolFeature,
    Request,
)
from support.vhost_messages import (
    ALL,
    CONFIG_BYTES,
    FEATURES,
    NEED_REPLY,
    RINGS,
    SLOTS,
    feed,
    fresh,
    negotiated,
    reply,
    state,
    status,
    u64,
)


def test_numbers_that_the_connection_knows_by_itself() -> None:
    connection = negotiated()
    for request_, value in (
        (Request.GET_FEATURES, FEATURES | F_PROTOCOL_FEATURES),
        (Request.GET_PROTOCOL_FEATURES, int(ALL)),
        (Request.GET_QUEUE_NUM, RINGS),
        (Request.GET_MAX_MEM_SLOTS, SLOTS),
    ):
        event = feed(connection, request_, flags=NEED_REPLY)
        assert connection.reply_demanded
        assert connection.auto_reply(event) == status(request_, value)


def test_reply_as_bytes() -> None:
    connection = negotiated()
    feed(connection, Request.GET_STATUS)
    assert connection.reply_u64(0xB) == bytes.fromhex("28000000 05000000 08000000 0b00000000000000")


@pytest.mark.parametrize(
    ("features", "flags", "ok", "expected"),
    [
        (ALL, NEED_REPLY, True, status(Request.SET_VRING_NUM, 0)),
        (ALL, NEED_REPLY, False, status(Request.SET_VRING_NUM, 1)),
        (ALL, HeaderFlag.VERSION, True, b""),
        (ALL, HeaderFlag.VERSION, False, b""),
        (ALL & ~ProtocolFeature.REPLY_ACK, NEED_REPLY, True, b""),
        (ALL & ~ProtocolFeature.REPLY_ACK, NEED_REPLY, False, b""),
    ],
)
def test_ack_answers_only_who_may_ask_and_does(
    features: ProtocolFeature, flags: HeaderFlag, ok: bool, expected: bytes
) -> None:
    connection = negotiated(features)
    feed(connection, Request.SET_VRING_NUM, state(0, 128), flags=flags)
    assert connection.reply_demanded == bool(expected)
    assert connection.ack(ok) == expected
    assert connection.pending is None
    assert not connection.reply_demanded


def test_set_protocol_features_is_acknowledged_by_its_own_contents() -> None:
    connection = fresh()
    event = feed(connection, Request.SET_PROTOCOL_FEATURES, u64(ALL), flags=NEED_REPLY)
    assert connection.auto_reply(event) == status(Request.SET_PROTOCOL_FEATURES, 0)


def test_the_log_base_is_answered_with_log_shmfd() -> None:
    connection = negotiated()
    feed(connection, Request.SET_LOG_BASE, LogDescription(4096, 0).pack(), 1)
    assert connection.ack() == status(Request.SET_LOG_BASE, 0)


@pytest.mark.parametrize(("ok", "value"), [(True, 0x100), (False, 0x101)])
def test_device_state_fd_says_that_no_descriptor_comes_back(ok: bool, value: int) -> None:
    connection = negotiated()
    feed(connection, Request.SET_DEVICE_STATE_FD, bytes(8), 1)
    assert connection.ack(ok) == status(Request.SET_DEVICE_STATE_FD, value)


@pytest.mark.parametrize(("ok", "value"), [(True, 0), (False, 1)])
def test_check_device_state(ok: bool, value: int) -> None:
    connection = negotiated()
    feed(connection, Request.CHECK_DEVICE_STATE)
    assert connection.ack(ok) == status(Request.CHECK_DEVICE_STATE, value)


def test_ring_base_reply() -> None:
    connection = negotiated()
    feed(connection, Request.GET_VRING_BASE, state(3))
    with pytest.raises(InternalError, match="ring 2 answers"):
        connection.reply_vring_state(2, 9)
    assert connection.reply_vring_state(3, 9) == reply(Request.GET_VRING_BASE, state(3, 9))


@pytest.mark.parametrize(
    ("offset", "size", "part"),
    [
        (0, 16, CONFIG_BYTES),
        (4, 8, CONFIG_BYTES[4:12]),
        (0, 20, CONFIG_BYTES + bytes(4)),
        (12, 8, CONFIG_BYTES[12:] + bytes(4)),
        (100, 4, bytes(4)),
        (0, 0, b""),
    ],
)
def test_config_reply_is_as_long_as_it_was_asked_for(offset: int, size: int, part: bytes) -> None:
    connection = negotiated()
    access = ConfigAccess(offset, size)
    feed(connection, Request.GET_CONFIG, access.pack() + bytes(size))
    answer = connection.reply_config(CONFIG_BYTES)
    assert answer == reply(Request.GET_CONFIG, access.pack() + part)


def test_config_reply_wants_the_whole_config_space() -> None:
    connection = negotiated()
    feed(connection, Request.GET_CONFIG, ConfigAccess(0, 4).pack())
    with pytest.raises(InternalError, match="4 bytes of config space"):
        connection.reply_config(bytes(4))


def test_an_unreadable_config_space_is_an_empty_reply() -> None:
    connection = negotiated()
    feed(connection, Request.GET_CONFIG, ConfigAccess(0, 4).pack())
    assert connection.ack(ok=False) == reply(Request.GET_CONFIG, b"")


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection: connection.reply_u64(1),
        lambda connection: connection.reply_vring_state(0, 0),
        lambda connection: connection.reply_config(CONFIG_BYTES),
    ],
)
def test_the_wrong_reply_is_our_own_fault_and_can_still_be_mended(
    answer: Callable[[BackendConnection], bytes],
) -> None:
    connection = negotiated()
    with pytest.raises(InternalError, match="to answer nothing"):
        answer(connection)
    feed(connection, Request.SET_VRING_NUM, state(0, 128), flags=NEED_REPLY)
    with pytest.raises(InternalError, match="to answer SET_VRING_NUM"):
        answer(connection)
    assert connection.ack() == status(Request.SET_VRING_NUM, 0)


def test_ack_cannot_stand_for_a_value() -> None:
    connection = negotiated()
    with pytest.raises(InternalError, match="no request is pending"):
        connection.ack()
    feed(connection, Request.GET_VRING_BASE, state(0))
    with pytest.raises(InternalError, match="GET_VRING_BASE wants a ring's state"):
        connection.ack()
    assert connection.ack(ok=False) == reply(Request.GET_VRING_BASE, b"")


def test_auto_reply_leaves_the_devices_events_alone() -> None:
    connection = negotiated()
    event = feed(connection, Request.SET_OWNER)
    assert connection.auto_reply(event) is None
    assert connection.ack() == b""
    event = feed(connection, Request.SET_FEATURES, u64(FEATURES))
    assert connection.auto_reply(event) is None
    assert connection.pending == Request.SET_FEATURES
    with pytest.raises(InternalError, match="is not pending"):
        connection.auto_reply(events.SetOwner())

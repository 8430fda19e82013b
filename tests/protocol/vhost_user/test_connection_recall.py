"""Messages that are taken in whole because one like them came before: the same comes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.message import (
    ConfigAccess,
    ConfigFlag,
    Header,
    HeaderFlag,
    ProtocolFeature,
    Request,
    pack_message,
)
from support.vhost_messages import ALL, NEED_REPLY, SERVED, feed, finish, negotiated, u64

HEAD = ConfigAccess(0, 16, ConfigFlag.NONE).pack()


def written(data: bytes, flags: HeaderFlag = NEED_REPLY) -> bytes:
    return pack_message(Request.SET_CONFIG, HEAD + data, flags)


READ = pack_message(Request.GET_CONFIG, HEAD + bytes(16))


def test_only_what_came_before_is_recalled_and_only_of_the_config_space() -> None:
    connection = negotiated()
    for request_, payload, fds, _ in SERVED:
        message = pack_message(request_, payload)
        assert connection.recall(message) is None
        finish(connection, feed(connection, request_, payload, fds))
        found = connection.recall(message)
        assert (found is not None) == (request_ in (Request.GET_CONFIG, Request.SET_CONFIG))
        if found is not None:
            finish(connection, found)


@given(st.binary(min_size=16, max_size=16), st.sampled_from([NEED_REPLY, HeaderFlag.VERSION]))
def test_a_write_is_recalled_with_its_own_data_and_answered_in_the_same_way(
    data: bytes, flags: HeaderFlag
) -> None:
    taught, plain = negotiated(), negotiated()
    finish(taught, feed(taught, Request.SET_CONFIG, HEAD + bytes(16), flags=flags))
    recalled = taught.recall(written(data, flags))
    received = feed(plain, Request.SET_CONFIG, HEAD + data, flags=flags)
    assert recalled == received == events.SetConfig(0, ConfigFlag.NONE, data)
    assert finish(taught, recalled) == finish(plain, received)
    assert taught.bytes_wanted == Header.SIZE


@pytest.mark.parametrize(
    "message",
    [
        written(bytes(15)),
        written(bytes(17)),
        written(bytes(16))[:-1],
        written(bytes(16)) + b"\0",
        written(bytes(16), HeaderFlag.VERSION),
        written(b"")[: Header.SIZE],
        READ,
        b"",
    ],
)
def test_what_is_not_quite_like_it_is_not_recalled(message: bytes) -> None:
    connection = negotiated()
    finish(connection, feed(connection, Request.SET_CONFIG, HEAD + bytes(16), flags=NEED_REPLY))
    assert connection.recall(message) is None
    assert connection.pending is None


def test_nothing_is_recalled_out_of_turn() -> None:
    connection = negotiated()
    finish(connection, feed(connection, Request.GET_CONFIG, HEAD + bytes(16)))
    event = connection.recall(READ)
    assert event is not None
    assert connection.recall(READ) is None
    finish(connection, event)
    connection.receive(READ[: Header.SIZE])
    assert connection.recall(READ) is None


def test_other_features_make_it_forget() -> None:
    connection = negotiated()
    finish(connection, feed(connection, Request.GET_CONFIG, HEAD + bytes(16)))
    without = ALL & ~ProtocolFeature.CONFIG
    finish(connection, feed(connection, Request.SET_PROTOCOL_FEATURES, u64(without)))
    assert connection.recall(READ) is None
    refused = feed(connection, Request.GET_CONFIG, HEAD + bytes(16))
    assert isinstance(refused, events.Unsupported)
    finish(connection, refused)
    assert connection.recall(READ) is None


def test_what_is_remembered_is_bounded() -> None:
    connection = negotiated()
    for offset in range(200):
        payload = ConfigAccess(offset, 1, ConfigFlag.NONE).pack() + b"\0"
        finish(connection, feed(connection, Request.GET_CONFIG, payload))
    assert len(connection._known) <= 16

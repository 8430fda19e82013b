"""Messages that are known by their bytes are taken in as those that are looked at."""

from __future__ import annotations

import pytest

from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.connection import MAX_PENDING, ServerConnection
from ballast_protocol.vfio_user.message import RegionAccess, pack_message
from support.vfio_messages import feed, finish, negotiated

NO_REPLY = HeaderFlag.NO_REPLY


def kick(queue: int = 0) -> bytes:
    return RegionAccess(0x3000 + 4 * queue, 0, 2).pack() + queue.to_bytes(2, "little")


def whole(payload: bytes, message_id: int, flags: HeaderFlag = HeaderFlag.COMMAND) -> bytes:
    return pack_message(message_id, Command.REGION_WRITE, payload, flags)


def ask(connection: ServerConnection, payload: bytes, flags: int = 0) -> bytes:
    return finish(connection, feed(connection, Command.REGION_WRITE, payload, flags=flags))


@pytest.mark.parametrize("flags", [HeaderFlag.COMMAND, NO_REPLY])
def test_a_kick_that_came_before_is_recalled_with_its_own_id(flags: HeaderFlag) -> None:
    connection = negotiated()
    assert connection.recall(whole(kick(), 8, flags)) is None
    answer = ask(connection, kick(), int(flags))
    for message_id in (9, 0xFFFF):
        request = connection.recall(whole(kick(), message_id, flags))
        assert request is not None
        assert request.event == events.RegionWrite(0, 0x3000, b"\0\0")
        assert (request.message_id, request.reply_demanded) == (message_id, not flags)
        again = finish(connection, request)
        assert again[2:] == answer[2:]
        assert not again or int.from_bytes(again[:2], "little") == message_id
        assert connection.pending == 0


def test_a_recalled_request_is_answered_once_and_may_be_refused() -> None:
    connection = negotiated()
    ask(connection, kick())
    request = connection.recall(whole(kick(), 9))
    assert request is not None
    refused = connection.refuse(request, 5)
    assert refused[4:8] == (16).to_bytes(4, "little")
    assert connection.pending == 0


def test_only_the_same_bytes_are_recalled() -> None:
    connection = negotiated()
    ask(connection, kick())
    message = whole(kick(), 9)
    for other in (
        whole(kick(1), 9),
        whole(kick(), 9, NO_REPLY),
        message[:-1],
        message + message,
        message + b"\0",
        b"",
    ):
        assert connection.recall(other) is None
    for at in range(2, len(message)):
        changed = bytearray(message)
        changed[at] ^= 1
        assert connection.recall(bytes(changed)) is None


def test_what_was_refused_and_what_is_long_is_looked_at_each_time() -> None:
    connection = negotiated()
    outside = RegionAccess(0x9000, 0, 2).pack() + b"\0\0"
    long = RegionAccess(0, 0, 4).pack() + bytes(4)
    for payload in (outside, long):
        ask(connection, payload)
        assert connection.recall(whole(payload, 9)) is None


def test_nothing_is_recalled_in_the_middle_of_a_message_or_beyond_what_may_wait() -> None:
    connection = negotiated()
    ask(connection, kick())
    message = whole(kick(), 9)
    requests = [connection.recall(message) for _ in range(MAX_PENDING)]
    assert None not in requests
    assert connection.recall(message) is None
    for request in requests:
        assert request is not None
        finish(connection, request)
    assert connection.receive(message[:16]) is None
    assert connection.recall(message) is None


def test_kicks_are_known_again_after_any_number_of_other_writes() -> None:
    connection = negotiated()
    for value in range(1000):
        ask(connection, RegionAccess(0x16, 0, 2).pack() + value.to_bytes(2, "little"))
    ask(connection, kick())
    request = connection.recall(whole(kick(), 9))
    assert request is not None
    finish(connection, request)

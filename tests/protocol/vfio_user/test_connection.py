"""The server's state machine, fed as the I/O shell feeds it: what comes in."""

from __future__ import annotations

import errno

import pytest

from ballast_protocol.errors import InternalError, MalformedError, PeerError, TruncatedError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.capabilities import Capabilities, EffectiveCapabilities
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.connection import MAX_PENDING, ServerConnection
from ballast_protocol.vfio_user.events import Event
from ballast_protocol.vfio_user.message import Header
from support.vfio_messages import (
    DEVICE,
    REFUSED,
    SERVED,
    command_name,
    dma_map,
    feed,
    finish,
    hello,
    negotiated,
    refusal,
    reply,
)

NO_REPLY = int(HeaderFlag.NO_REPLY)


def mapped() -> ServerConnection:
    """Return a connection on which what the examples unmap has been mapped."""
    connection = negotiated()
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0, 0xA0000)))
    return connection


def test_the_tables_cover_every_command() -> None:
    assert {row[0] for row in SERVED} | {row[0] for row in REFUSED} == set(Command)
    assert not {row[0] for row in SERVED} & {row[0] for row in REFUSED}


@pytest.mark.parametrize(("command", "payload", "fds", "event"), SERVED, ids=command_name)
@pytest.mark.parametrize("flags", [0, NO_REPLY])
def test_served_command_becomes_its_event(
    command: Command, payload: bytes, fds: int, event: Event, flags: int
) -> None:
    connection = mapped()
    request = feed(connection, command, payload, fds, flags)
    assert request.event == event
    assert request.reply_demanded == (flags == 0)
    assert bool(finish(connection, request)) == request.reply_demanded
    assert connection.pending == 0
    assert connection.bytes_wanted == Header.SIZE


@pytest.mark.parametrize(("command", "payload", "fds", "event"), SERVED, ids=command_name)
def test_truncated_message_is_the_peers_fault(
    command: Command, payload: bytes, fds: int, event: Event
) -> None:
    header = Header(1, command, Header.SIZE + len(payload)).pack()
    for size in range(len(header)):
        connection = mapped()
        with pytest.raises(TruncatedError):
            connection.receive(header[:size], fds)
        assert connection.broken
    for size in range(len(payload)):
        connection = mapped()
        connection.receive(header, fds)
        with pytest.raises(TruncatedError, match=command.name):
            connection.receive(payload[:size])
        assert connection.broken


@pytest.mark.parametrize(("command", "payload", "fds", "event"), SERVED, ids=command_name)
def test_a_payload_of_another_size_is_refused(
    command: Command, payload: bytes, fds: int, event: Event
) -> None:
    connection = mapped()
    before = len(connection.maps)
    for wrong in {payload[:-1], payload + b"\0"} - {payload}:
        request = feed(connection, command, wrong, fds)
        assert isinstance(request.event, events.Refused)
        assert finish(connection, request) == refusal(command, errno.EINVAL)
    assert len(connection.maps) == before


@pytest.mark.parametrize(("command", "payload", "fds", "event"), SERVED, ids=command_name)
def test_descriptors_that_do_not_belong_are_refused(
    command: Command, payload: bytes, fds: int, event: Event
) -> None:
    allowed = {Command.DMA_MAP: {0, 1}}.get(command, {fds})
    if isinstance(event, events.SetIrqEventfds):
        allowed = {0, event.count}
    for count in set(range(18)) - allowed:
        connection = mapped()
        request = feed(connection, command, payload, count)
        assert isinstance(request.event, events.Refused)
        assert command.name in request.event.reason
        assert connection.auto_reply(request) == refusal(command, errno.EINVAL)
        assert not connection.broken


@pytest.mark.parametrize(("command", "payload", "error"), REFUSED, ids=command_name)
@pytest.mark.parametrize("flags", [0, NO_REPLY])
def test_what_is_not_served_is_refused_and_the_connection_goes_on(
    command: Command, payload: bytes, error: int, flags: int
) -> None:
    connection = negotiated()
    request = feed(connection, command, payload, flags=flags)
    assert isinstance(request.event, events.Refused)
    assert (request.event.command, request.event.errno) == (command, error)
    assert command.name in request.event.reason
    assert connection.auto_reply(request) == (b"" if flags else refusal(command, error))
    assert feed(connection, Command.DEVICE_RESET).event == events.DeviceReset()


@pytest.mark.parametrize("code", [0, 19, 255, 0xFFFF])
def test_unknown_codes_are_refused_too(code: int) -> None:
    connection = negotiated()
    request = feed(connection, code, b"some payload", 3)
    expected = events.Refused(code, errno.ENOTSUP, f"command {code}: no such command")
    assert request.event == expected
    assert connection.auto_reply(request) == refusal(code, errno.ENOTSUP)


# The first message


def test_qemus_version() -> None:
    connection = ServerConnection(DEVICE)
    payload = hello()
    assert Header.SIZE + len(payload) == 214
    request = feed(connection, Command.VERSION, payload)
    assert request.event == events.Version(0, 0, Capabilities(1048576, 16, 65535, 4096, True))
    assert connection.client == EffectiveCapabilities(1048576, 16, 65535, 4096, True)
    answer = connection.auto_reply(request)
    assert answer == reply(
        Command.VERSION,
        bytes(4)
        + b'{"capabilities":{"max_data_xfer_size":1048576,"max_msg_fds":16,'
        + b'"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}\0',
    )
    assert len(answer) <= 214


@pytest.mark.parametrize(("theirs", "agreed"), [(0, 0), (1, 1), (9, 1)])
def test_the_lower_minor_version_holds(theirs: int, agreed: int) -> None:
    connection = ServerConnection(DEVICE)
    request = feed(connection, Command.VERSION, hello(theirs))
    answer = connection.auto_reply(request)
    assert answer is not None
    assert answer[16:20] == bytes([0, 0, agreed, 0])


def test_a_client_that_says_nothing_is_told_nothing() -> None:
    connection = ServerConnection(DEVICE, Capabilities(max_data_xfer_size=4096, max_dma_maps=2))
    request = feed(connection, Command.VERSION, hello(0, b""))
    assert connection.auto_reply(request) == reply(Command.VERSION, bytes(4))
    assert connection.limits == EffectiveCapabilities()
    assert connection.maps.limit == 65535


@pytest.mark.parametrize("command", [*list(Command)[1:], 0, 99], ids=str)
def test_nothing_comes_before_the_version(command: int) -> None:
    with pytest.raises(MalformedError, match="begins with VERSION"):
        feed(ServerConnection(DEVICE), command)


@pytest.mark.parametrize(
    ("payload", "fds", "complaint"),
    [
        (b"\1\0\0\0", 0, "version 1.0"),
        (hello()[:-1], 0, "NUL"),
        (hello(0, b"[]\0"), 0, "no JSON object"),
        (hello(0, b'{"capabilities":{"pgsizes":8192}}\0'), 0, "page sizes"),
        (bytes(4 + 4097), 0, "a message of"),
        (b"\0\0\0", 0, "has 4 bytes, but only 3"),
        (b"", 0, "only 0 came"),
        (hello(), 1, "1 file descriptors"),
    ],
)
def test_a_version_that_we_cannot_speak_is_fatal(payload: bytes, fds: int, complaint: str) -> None:
    connection = ServerConnection(DEVICE)
    with pytest.raises(PeerError, match=f"VERSION: .*{complaint}"):
        feed(connection, Command.VERSION, payload, fds)
    assert connection.broken


# Frames


@pytest.mark.parametrize("flags", [2, 0xF, 0x20, 0x40, 0x11, 0x80000000, 0x41])
def test_bad_flags_are_fatal(flags: int) -> None:
    connection = negotiated()
    with pytest.raises(MalformedError, match="DEVICE_RESET: flags"):
        connection.receive(Header(1, 13, 16, HeaderFlag(flags)).pack())
    assert connection.broken


@pytest.mark.parametrize("size", [0, 15, 16 + 16 + (1 << 20) + 1, 0xFFFFFFFF])
def test_sizes_beyond_what_was_agreed_on_are_fatal(size: int) -> None:
    with pytest.raises(MalformedError, match=f"a message of {size} bytes"):
        negotiated().receive(Header(1, Command.REGION_WRITE, size).pack())


def test_the_bound_follows_from_the_transfer_size() -> None:
    connection = ServerConnection(DEVICE, Capabilities(max_data_xfer_size=65536))
    finish(connection, feed(connection, Command.VERSION, hello()))
    connection.receive(Header(1, Command.REGION_WRITE, 32 + 65536).pack())
    assert connection.bytes_wanted == 16 + 65536
    connection = ServerConnection(DEVICE, Capabilities(max_data_xfer_size=65536))
    finish(connection, feed(connection, Command.VERSION, hello()))
    with pytest.raises(MalformedError, match="not 16 to 65568"):
        connection.receive(Header(1, Command.REGION_WRITE, 32 + 65537).pack())


def test_descriptors_must_come_with_the_header() -> None:
    connection = negotiated()
    connection.receive(Header(1, Command.DMA_MAP, 48).pack())
    with pytest.raises(MalformedError, match=r"DMA_MAP: .*middle of the message"):
        connection.receive(dma_map(0, 4096), 1)


def test_nothing_is_taken_after_the_connection_broke() -> None:
    connection = negotiated()
    with pytest.raises(PeerError):
        connection.receive(bytes(16))
    with pytest.raises(InternalError, match="broken=True"):
        connection.receive(Header(1, 13, 16).pack())


def test_reading_more_than_was_wanted_is_our_own_fault() -> None:
    with pytest.raises(InternalError, match="17 bytes where 16"):
        negotiated().receive(bytes(17))


# Pipelining


def test_requests_wait_side_by_side_and_are_answered_in_any_order() -> None:
    connection = negotiated()
    ids = [3, 4, 4, 5]
    waiting = [
        feed(connection, Command.DMA_MAP, dma_map(n << 12, 4096), 1, message_id=message_id)
        for n, message_id in enumerate(ids)
    ]
    assert connection.pending == 4
    assert [request.number for request in waiting] == [2, 3, 4, 5]
    for request in reversed(waiting):
        assert connection.ack(request) == reply(Command.DMA_MAP, b"", request.message_id)
    assert connection.pending == 0


def test_no_more_than_so_many_requests_wait() -> None:
    connection = negotiated()
    waiting = [feed(connection, Command.DEVICE_RESET) for _ in range(MAX_PENDING)]
    assert connection.bytes_wanted == 0
    with pytest.raises(InternalError, match="out of turn"):
        connection.receive(b"")
    finish(connection, waiting[17])
    assert connection.bytes_wanted == Header.SIZE
    connection.receive(Header(1, Command.DMA_MAP, 48).pack(), 1)
    assert connection.bytes_wanted == 32

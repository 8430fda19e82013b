"""The server's state machine, given anything at all: it parses, or it is a `PeerError`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ballast_protocol.errors import PeerError
from ballast_protocol.vfio_user.codes import HeaderFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.events import Request
from ballast_protocol.vfio_user.message import Header
from support.vfio_messages import DEVICE, REFUSED, SERVED, dma_map, finish, hello, negotiated

GOOD = [*[(row[0], row[1], row[2]) for row in SERVED], *[(row[0], row[1], 0) for row in REFUSED]]
PLAUSIBLE = st.one_of(
    st.sampled_from(GOOD),
    st.sampled_from([(1, hello(), 0), (2, dma_map(0, 0xA0000), 1)]),
    st.builds(
        lambda row, at, byte: (row[0], row[1][:at] + bytes([byte]) + row[1][at + 1 :], row[2]),
        st.sampled_from(GOOD),
        st.integers(0, 40),
        st.integers(0, 255),
    ),
    st.tuples(st.integers(0, 30), st.binary(max_size=300), st.integers(0, 20)),
)
FLAGS = st.sampled_from([0, 0, 0, 0, 0x10, 0x10, 1, 0x21]) | st.integers(0, 0xFFFFFFFF)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(PLAUSIBLE, FLAGS, st.integers(0, 0xFFFF)), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_any_messages_parse_or_are_the_peers_fault(
    messages: list[tuple[tuple[int, bytes, int], int, int]], agreed: bool, at_once: bool
) -> None:
    connection = negotiated() if agreed else ServerConnection(DEVICE)
    waiting: list[Request] = []
    for (code, payload, fds), flags, message_id in messages:
        header = Header(message_id, code, 16 + len(payload), HeaderFlag(flags))
        try:
            found = connection.receive(header.pack(), fds)
            if found is None:
                found = connection.receive(payload)
        except PeerError:
            assert connection.broken
            return
        assert isinstance(found, Request)
        waiting.append(found)
        if at_once:
            check_answer(connection, waiting.pop())
    for request in waiting:
        check_answer(connection, request)
    assert connection.pending == 0


def check_answer(connection: ServerConnection, request: Request) -> None:
    answer = finish(connection, request)
    assert bool(answer) == request.reply_demanded
    if answer:
        header = Header.unpack(answer)
        assert (header.message_id, header.command) == (request.message_id, request.command)
        assert header.size == len(answer)
        assert header.flags in (HeaderFlag.REPLY, HeaderFlag.REPLY | HeaderFlag.ERROR)


@given(st.binary(max_size=400), st.integers(0, 9), st.booleans())
def test_any_bytes_parse_or_are_the_peers_fault(data: bytes, fds: int, agreed: bool) -> None:
    connection = negotiated() if agreed else ServerConnection(DEVICE)
    connection_reads(connection, data, fds)


@given(st.binary(max_size=400), st.integers(0, 2))
def test_any_replies_parse_or_are_the_peers_fault(data: bytes, number: int) -> None:
    connection = negotiated()
    connection.ack(feed_map(connection))
    for _ in range(number):
        connection.dma_read(0, 16)
        connection.dma_write(0, b"data")
    connection_reads(connection, Header(0, 11, 32, HeaderFlag.REPLY).pack() + data, 0)


def feed_map(connection: ServerConnection) -> Request:
    payload = dma_map(0, 4096)
    assert connection.receive(Header(1, 2, 16 + len(payload)).pack()) is None
    found = connection.receive(payload)
    assert isinstance(found, Request)
    return found


def connection_reads(connection: ServerConnection, data: bytes, fds: int) -> None:
    try:
        while data:
            piece, data = data[: connection.bytes_wanted], data[connection.bytes_wanted :]
            found = connection.receive(piece, 0 if connection.mid_message else fds)
            if isinstance(found, Request):
                finish(connection, found)
    except PeerError:
        assert connection.broken

"""The back-end's state machine, given anything at all: it parses, or it is a `PeerError`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ballast_protocol.errors import PeerError
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    Header,
    HeaderFlag,
)
from support.vhost_messages import (
    REFUSED,
    SERVED,
    finish,
    fresh,
    negotiated,
)

PLAUSIBLE = st.one_of(
    st.sampled_from([(row[0], row[1], row[2]) for row in (*SERVED, *REFUSED)]),
    st.tuples(st.integers(0, 50), st.binary(max_size=300), st.integers(0, 9)),
)
FLAGS = st.sampled_from([1, 1, 1, 9, 9, 5, 0]) | st.integers(0, 0xFFFFFFFF)


@settings(max_examples=300)
@given(st.lists(st.tuples(PLAUSIBLE, FLAGS), max_size=12), st.booleans())
def test_any_messages_parse_or_are_the_peers_fault(
    messages: list[tuple[tuple[int, bytes, int], int]], agreed: bool
) -> None:
    connection = negotiated() if agreed else fresh()
    for (code, payload, fds), flags in messages:
        try:
            event = connection.receive(Header(code, HeaderFlag(flags), len(payload)).pack(), fds)
            if event is None:
                event = connection.receive(payload)
        except PeerError:
            assert connection.broken
            return
        assert event is not None
        demanded = connection.reply_demanded
        answer = finish(connection, event)
        assert bool(answer) == demanded
        if answer:
            header = Header.unpack(answer)
            assert header == Header(code, REPLY_FLAGS, len(answer) - Header.SIZE)


@given(st.binary(max_size=400), st.integers(0, 9), st.booleans())
def test_any_bytes_parse_or_are_the_peers_fault(data: bytes, fds: int, agreed: bool) -> None:
    connection = negotiated() if agreed else fresh()
    try:
        while data:
            piece, data = data[: connection.bytes_wanted], data[connection.bytes_wanted :]
            event = connection.receive(piece, 0 if connection.mid_message else fds)
            if event is not None:
                finish(connection, event)
    except PeerError:
        assert connection.broken

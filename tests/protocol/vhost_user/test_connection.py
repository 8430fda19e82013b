"""The back-end's state machine, fed as the I/O shell feeds it: what comes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ballast_protocol.errors import InternalError, MalformedError, PeerError, TruncatedError
from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.connection import BackendConnection
from ballast_protocol.vhost_user.events import Event
from ballast_protocol.vhost_user.message import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    ConfigAccess,
    Header,
    HeaderFlag,
    LogDescription,
    ProtocolFeature,
    Request,
    VringAddress,
    VringAddrFlag,
    pack_region_table,
)
from ballast_protocol.vhost_user.rules import RULES, Reply
from support.vhost_messages import (
    ALL,
    FEATURES,
    NEED_REPLY,
    REFUSED,
    REGION,
    RINGS,
    SERVED,
    feed,
    finish,
    fresh,
    negotiated,
    reply,
    request_name,
    state,
    status,
    u64,
)


def test_the_tables_cover_every_request() -> None:
    assert {row[0] for row in SERVED} | {row[0] for row in REFUSED} == set(Request)
    assert not {row[0] for row in SERVED} & {row[0] for row in REFUSED}


@pytest.mark.parametrize(("request_", "payload", "fds", "event"), SERVED, ids=request_name)
def test_served_request_becomes_its_event(
    request_: Request, payload: bytes, fds: int, event: Event
) -> None:
    connection = negotiated()
    assert feed(connection, request_, payload, fds) == event
    finish(connection, event)
    assert connection.pending is None
    assert connection.bytes_wanted == Header.SIZE
    assert not connection.mid_message


@pytest.mark.parametrize(("request_", "payload", "fds", "event"), SERVED, ids=request_name)
def test_truncated_request_is_the_peers_fault(
    request_: Request, payload: bytes, fds: int, event: Event
) -> None:
    header = Header(request_, HeaderFlag.VERSION, len(payload)).pack()
    for size in range(len(header)):
        connection = negotiated()
        with pytest.raises(TruncatedError):
            connection.receive(header[:size], fds)
        assert connection.broken
    for size in range(len(payload)):
        connection = negotiated()
        connection.receive(header, fds)
        with pytest.raises(TruncatedError, match=request_.name):
            connection.receive(payload[:size])
        assert connection.broken


@pytest.mark.parametrize(("request_", "payload", "fds", "_answer"), REFUSED, ids=request_name)
@pytest.mark.parametrize("flags", [HeaderFlag.VERSION, NEED_REPLY])
def test_what_is_not_served_is_refused_and_the_connection_goes_on(
    request_: Request, payload: bytes, fds: int, _answer: bytes | None, flags: HeaderFlag
) -> None:
    connection = negotiated()
    event = feed(connection, request_, payload, fds, flags)
    assert isinstance(event, events.Unsupported)
    assert event.request == request_
    assert request_.name in event.reason
    if _answer is not None:
        expected = reply(request_, _answer)
    else:
        expected = status(request_, 1) if flags == NEED_REPLY else b""
    assert connection.auto_reply(event) == expected
    assert isinstance(feed(connection, Request.GET_FEATURES), events.GetFeatures)


@pytest.mark.parametrize("code", [0, 45, 255, 0x102, 0xFFFFFFFF])
def test_unknown_codes_are_refused_too(code: int) -> None:
    connection = negotiated()
    event = feed(connection, code, b"some payload", 3, NEED_REPLY)
    assert event == events.Unsupported(code, f"request {code} is not served")
    assert connection.auto_reply(event) == status(code, 1)


# Features that nobody negotiated


GATED = [row for row in SERVED if RULES[row[0]].needs]


@pytest.mark.parametrize(("request_", "payload", "fds", "_event"), GATED, ids=request_name)
def test_a_request_needs_its_protocol_feature(
    request_: Request, payload: bytes, fds: int, _event: Event
) -> None:
    needs = RULES[request_].needs
    connection = negotiated(ALL & ~needs)
    event = feed(connection, request_, payload, fds)
    assert isinstance(event, events.Unsupported)
    assert needs.name is not None
    assert needs.name in event.reason
    answer = connection.auto_reply(event)
    assert answer is not None
    if RULES[request_].reply in (Reply.U64, Reply.CONFIG):
        assert answer == reply(request_, b"")
    assert not connection.broken


def test_nothing_is_negotiated_at_first() -> None:
    connection = fresh()
    assert connection.features_acked == 0
    assert connection.protocol_features_acked == ProtocolFeature(0)
    event = feed(connection, Request.GET_CONFIG, ConfigAccess(0, 4).pack())
    assert isinstance(event, events.Unsupported)


@pytest.mark.parametrize("extra", [1 << 14, 1 << 17, 1 << 40])
def test_protocol_features_never_offered_are_fatal(extra: int) -> None:
    connection = fresh()
    with pytest.raises(MalformedError, match=r"SET_PROTOCOL_FEATURES: .*never offered"):
        feed(connection, Request.SET_PROTOCOL_FEATURES, u64(ALL | extra))
    assert connection.broken


@pytest.mark.parametrize("extra", [1 << 34, 1 << 33, 1, 1 << 63])
def test_features_never_offered_are_fatal(extra: int) -> None:
    connection = negotiated()
    with pytest.raises(MalformedError, match=f"SET_FEATURES: .*never offered: {extra:#x}"):
        feed(connection, Request.SET_FEATURES, u64(FEATURES | extra))
    assert connection.broken
    assert connection.features_acked == 0


@pytest.mark.parametrize("own", [0, F_PROTOCOL_FEATURES, F_LOG_ALL | F_PROTOCOL_FEATURES])
def test_vhost_users_own_bits_are_tolerated(own: int) -> None:
    connection = negotiated()
    event = feed(connection, Request.SET_FEATURES, u64(FEATURES | own))
    assert event == events.SetFeatures(FEATURES | own)
    assert connection.features_acked == FEATURES | own


def test_only_what_can_be_served_may_be_offered() -> None:
    for feature in (ProtocolFeature.XEN_MMAP, ProtocolFeature.PAGEFAULT):
        with pytest.raises(InternalError, match=str(feature.name)):
            fresh(feature | ProtocolFeature.MQ)
    with pytest.raises(InternalError, match="cannot serve"):
        fresh(ProtocolFeature(1 << 40))
    with pytest.raises(InternalError, match="257 bytes"):
        BackendConnection(
            features=0,
            protocol_features=ALL,
            queue_count=1,
            max_mem_slots=1,
            config_size=257,
        )


# File descriptors


def accepted_fd_counts(request: Request, payload: bytes) -> set[int]:
    """What the table above, and so the specification, allows for exactly this message."""
    rows = [(row[0], row[1], row[2]) for row in (*SERVED, *REFUSED)]
    return {fds for code, body, fds in rows if (code, body) == (request, payload)}


@pytest.mark.parametrize(
    ("request_", "payload"), {(row[0], row[1]): 0 for row in (*SERVED, *REFUSED)}, ids=request_name
)
def test_any_other_number_of_descriptors_is_fatal(request_: Request, payload: bytes) -> None:
    for fds in set(range(10)) - accepted_fd_counts(request_, payload):
        connection = negotiated()
        with pytest.raises(MalformedError, match=request_.name):
            feed(connection, request_, payload, fds)
        assert connection.broken


def test_nine_descriptors_are_too_many_even_for_an_unknown_request() -> None:
    with pytest.raises(MalformedError, match="9 file descriptors"):
        feed(negotiated(), 1000, b"", 9)


def test_descriptors_must_come_with_the_header() -> None:
    connection = negotiated()
    connection.receive(Header(Request.SET_VRING_KICK, HeaderFlag.VERSION, 8).pack())
    with pytest.raises(MalformedError, match=r"SET_VRING_KICK: .*middle of the message"):
        connection.receive(u64(0), 1)


def test_the_log_has_a_descriptor_only_with_log_shmfd() -> None:
    connection = negotiated(ALL & ~ProtocolFeature.LOG_SHMFD)
    event = feed(connection, Request.SET_LOG_BASE, LogDescription(0x10000, 0).pack())
    assert event == events.SetLogBase(0x10000, 0, has_fd=False)
    assert connection.ack() == b""
    with pytest.raises(MalformedError, match="LOG_SHMFD"):
        feed(connection, Request.SET_LOG_BASE, LogDescription(0x10000, 0).pack(), 1)


def test_the_log_base_may_be_a_mere_number() -> None:
    connection = negotiated(ALL & ~ProtocolFeature.LOG_SHMFD)
    event = feed(connection, Request.SET_LOG_BASE, u64(0x4000))
    assert event == events.SetLogBase(0, 0x4000, has_fd=False)


# Headers and payloads


@pytest.mark.parametrize("flags", [0, 2, 3, 5, 0xD, 0x11, 0x80000001])
def test_bad_flags_are_fatal(flags: int) -> None:
    connection = fresh()
    with pytest.raises(MalformedError, match="GET_FEATURES"):
        connection.receive(Header(1, HeaderFlag(flags), 0).pack())
    assert connection.broken


@pytest.mark.parametrize("request_", Request, ids=request_name)
def test_sizes_beyond_the_requests_own_bounds_are_fatal(request_: Request) -> None:
    least, most = RULES[request_].sizes
    for size in {least - 1, most + 1, 0xFFFFFFFF}:
        if size < 0:
            continue
        connection = negotiated()
        with pytest.raises(MalformedError, match=f"{request_.name}: a payload of {size} bytes"):
            connection.receive(
                Header(request_, HeaderFlag.VERSION, size).pack(), RULES[request_].fds[0]
            )


def test_an_unknown_requests_payload_is_bounded() -> None:
    connection = fresh()
    with pytest.raises(MalformedError, match="request 77: a payload of 4097"):
        connection.receive(Header(77, HeaderFlag.VERSION, 4097).pack())


RING_REQUESTS: list[tuple[Request, Callable[[int], bytes], int]] = [
    (Request.SET_VRING_NUM, state, 0),
    (Request.SET_VRING_BASE, state, 0),
    (Request.GET_VRING_BASE, state, 0),
    (Request.SET_VRING_ENABLE, state, 0),
    (
        Request.SET_VRING_ADDR,
        lambda index: VringAddress(index, VringAddrFlag.NONE, 0, 0, 0).pack(),
        0,
    ),
    (Request.SET_VRING_KICK, u64, 1),
    (Request.SET_VRING_CALL, u64, 1),
    (Request.SET_VRING_ERR, u64, 1),
]


@pytest.mark.parametrize(("request_", "payload", "fds"), RING_REQUESTS, ids=request_name)
def test_a_ring_that_does_not_exist_is_fatal(
    request_: Request, payload: Callable[[int], bytes], fds: int
) -> None:
    feed(negotiated(), request_, payload(RINGS - 1), fds)
    with pytest.raises(MalformedError, match=f"{request_.name}: ring {RINGS}, .* only {RINGS}"):
        feed(negotiated(), request_, payload(RINGS), fds)


@pytest.mark.parametrize(
    ("request_", "payload", "fds", "complaint"),
    [
        (Request.SET_VRING_ENABLE, state(0, 2), 0, "neither enabled nor disabled"),
        (Request.SET_VRING_KICK, u64(1 << 9), 1, "bits beyond"),
        (Request.GET_CONFIG, ConfigAccess(250, 7).pack(), 0, "bytes 250"),
        (Request.GET_CONFIG, ConfigAccess(0xFFFFFFFF, 0xFFFFFFFF).pack(), 0, "config space"),
        (Request.GET_CONFIG, ConfigAccess(0, 16).pack() + bytes(15), 0, "16 bytes asked"),
        (Request.SET_CONFIG, ConfigAccess(0, 16).pack() + bytes(15), 0, "16 bytes written"),
        (Request.SET_CONFIG, ConfigAccess(0, 16).pack() + bytes(17), 0, "16 bytes written"),
        (Request.SET_MEM_TABLE, pack_region_table((REGION,)) + bytes(32), 1, "1 memory regions"),
        (Request.SET_DEVICE_STATE_FD, bytes([2, 0, 0, 0, 0, 0, 0, 0]), 1, "TransferDirection"),
    ],
)
def test_payloads_that_contradict_themselves_are_fatal(
    request_: Request, payload: bytes, fds: int, complaint: str
) -> None:
    connection = negotiated()
    with pytest.raises(MalformedError, match=f"{request_.name}: .*{complaint}"):
        feed(connection, request_, payload, fds)
    assert connection.broken


# Turns


def test_no_request_is_taken_before_the_last_was_finished() -> None:
    connection = negotiated()
    event = feed(connection, Request.SET_VRING_NUM, state(0, 64))
    with pytest.raises(InternalError, match="out of turn"):
        connection.receive(Header(1, HeaderFlag.VERSION, 0).pack())
    assert not connection.broken
    assert finish(connection, event) == b""
    feed(connection, Request.GET_FEATURES)


def test_nothing_is_taken_after_the_connection_broke() -> None:
    connection = fresh()
    with pytest.raises(PeerError):
        connection.receive(bytes(12))
    with pytest.raises(InternalError, match="broken=True"):
        connection.receive(Header(1, HeaderFlag.VERSION, 0).pack())


def test_reading_more_than_was_wanted_is_our_own_fault() -> None:
    with pytest.raises(InternalError, match="13 bytes where 12"):
        fresh().receive(bytes(13))


# Sessions


def handshake(connection: BackendConnection, accept: ProtocolFeature) -> None:
    for request_, payload in (
        (Request.GET_FEATURES, b""),
        (Request.GET_PROTOCOL_FEATURES, b""),
        (Request.SET_PROTOCOL_FEATURES, u64(accept)),
        (Request.SET_OWNER, b""),
        (Request.GET_FEATURES, b""),
        (Request.SET_FEATURES, u64(FEATURES | F_PROTOCOL_FEATURES)),
    ):
        finish(connection, feed(connection, request_, payload))


def test_a_second_handshake_on_the_same_connection() -> None:
    connection = fresh()
    handshake(connection, ALL)
    assert connection.protocol_features_acked == ALL
    assert connection.features_acked == FEATURES | F_PROTOCOL_FEATURES
    fewer = ProtocolFeature.CONFIG | ProtocolFeature.MQ
    handshake(connection, fewer)
    assert connection.protocol_features_acked == fewer
    feed(connection, Request.SET_VRING_NUM, state(0, 128), flags=NEED_REPLY)
    assert connection.ack() == b""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import InternalError, MalformedError
from ballast_protocol.guest import (
    MAX_REPORT_BYTES,
    VERSIONS,
    ErrorReply,
    HelloRequest,
    MemoryReport,
    Message,
    MessageKind,
    ReportRequest,
    SetInterval,
    Welcome,
    agree_on_version,
    decode,
    encode,
    refusal,
)
from ballast_protocol.guest_blocks import Sweep
from ballast_protocol.guest_framing import Frame, FrameDecoder
from support.guest_messages import HELLO, report, zone

MESSAGES: list[Message] = [
    HELLO,
    replace(HELLO, interval_seconds=2.5, protocol_versions=(1, 99), abilities=("x", "y")),
    replace(HELLO, hello_id=1 << 60),
    Welcome(1, 5.0),
    Welcome(2, 5.0, hello_id=7, session=1 << 60),
    HelloRequest(),
    ReportRequest(),
    SetInterval(0.5),
    ErrorReply(77, "no"),
    report(),
    report(zone(0), zone(1), zone(1, "Movable", ())),
    replace(report(), pressure=None),
]


def frame_of(message: Message, request_id: int = 0) -> Frame:
    (frame,) = FrameDecoder().feed(encode(message, request_id))
    return frame


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_channel(message: Message) -> None:
    frame = frame_of(message, 12)
    assert frame.request_id == 12
    assert decode(frame) == message


def test_introductions_stay_readable_for_ends_of_version_1() -> None:
    assert frame_of(replace(HELLO, hello_id=5)).version == 1
    assert frame_of(Welcome(2, 5.0, hello_id=5, session=6)).version == 1
    assert frame_of(Sweep()).version == 2


def altered(message: Message, change: Callable[[dict[str, Any]], object]) -> Frame:
    fields = json.loads(json.dumps(asdict(message)))
    change(fields)
    return replace(frame_of(message), payload=json.dumps(fields).encode("ascii"))


def test_unknown_fields_are_ignored() -> None:
    assert decode(altered(HELLO, lambda f: f.update(colour="blue"))) == HELLO


@pytest.mark.parametrize("field", ["agent_version", "page_size", "protocol_versions", "boot_id"])
def test_missing_fields_are_refused(field: str) -> None:
    with pytest.raises(MalformedError, match=field):
        decode(altered(HELLO, lambda f: f.pop(field)))


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (HELLO, "agent_version", 1),
        (HELLO, "agent_version", "x" * 257),
        (HELLO, "agent_version", "\x1b[2J"),
        (HELLO, "kernel_release", "\ud800"),
        (HELLO, "page_size", 4095),
        (HELLO, "page_size", True),
        (HELLO, "page_size", 4096.0),
        (HELLO, "protocol_versions", [1] * 65),
        (HELLO, "protocol_versions", "1"),
        (HELLO, "abilities", [None]),
        (HELLO, "interval_seconds", 0),
        (Welcome(1, 5), "interval_seconds", 3601),
        (Welcome(1, 5), "interval_seconds", "5"),
        (Welcome(2, 5), "session", "5"),
        (HELLO, "hello_id", -1),
        (Welcome(1, 5), "interval_seconds", 10**400),
        (SetInterval(5), "interval_seconds", None),
        (ErrorReply(1, "x"), "refused_kind", -1),
        (report(), "boottime_seconds", -1),
        (report(), "meminfo_bytes", []),
        (report(), "meminfo_bytes", {"MemFree": MAX_REPORT_BYTES + 1}),
        (report(), "meminfo_bytes", {"Mem\nFree": 1}),
        (report(), "meminfo_bytes", {str(n): 1 for n in range(65)}),
        (report(), "zones", [1]),
        (report(), "zones", {}),
        (report(), "zones", [asdict(zone())] * 2),
        (report(), "zones", [asdict(zone(n)) for n in range(1025)]),
        (report(), "zones", [{**asdict(zone()), "node": 1 << 16}]),
        (report(), "zones", [{**asdict(zone()), "free_blocks": [0] * 33}]),
        (report(), "zones", [{**asdict(zone()), "free_blocks": [1 << 40, 1]}]),
        (report(), "zones", [{**asdict(zone()), "managed_bytes": -1}]),
        (report(), "pressure", {"some": {}}),
        (report(), "pressure", 0),
    ],
)
def test_untrusted_values_are_bounded(message: Message, field: str, value: object) -> None:
    with pytest.raises(MalformedError):
        decode(altered(message, lambda f: f.update({field: value})))


@pytest.mark.parametrize("average", [-0.1, 100.1])
def test_pressure_is_a_percentage(average: float) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["pressure"]["full"]["avg60"] = average

    with pytest.raises(MalformedError, match="avg60"):
        decode(altered(report(), change))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"1", b'{"a":NaN}', b'{"a":-Infinity}', b"[" * 200_000, b"1" * 10_000],
)
def test_payloads_that_are_no_objects_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(Frame(MessageKind.HELLO_REQUEST, 0, payload, 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 9), json_values), min_size=1, max_size=3),
)
def test_nothing_but_malformed_is_raised(
    message: Message, changes: list[tuple[int, object]]
) -> None:
    def change(fields: dict[str, Any]) -> None:
        names = [*fields, "other"]
        fields.update({names[index % len(names)]: value for index, value in changes})

    try:
        decoded = decode(altered(message, change))
    except MalformedError:
        return
    assert decode(frame_of(decoded)) == decoded


@given(st.binary(max_size=40), st.integers(0, 255), st.integers(0, 255))
def test_garbage_payloads_raise_malformed_only(payload: bytes, kind: int, version: int) -> None:
    try:
        decode(Frame(kind, 0, payload, version))
    except MalformedError:
        return
    assert version in VERSIONS


def test_other_versions_and_kinds_are_refused() -> None:
    with pytest.raises(MalformedError, match="version 3"):
        decode(Frame(MessageKind.HELLO_REQUEST, 0, b"{}", 3))
    with pytest.raises(MalformedError, match="kind 99"):
        decode(Frame(99, 0, b"{}", 1))


def test_the_newest_common_version_is_agreed_on() -> None:
    assert agree_on_version((1, 2, 99)) == 2
    assert agree_on_version((1,)) == 1
    assert agree_on_version((3, 99)) is None
    assert agree_on_version(()) is None


def test_refusals_always_fit_their_own_bounds() -> None:
    reply = refusal(5, MalformedError("\x1b[31m" + "x" * 1000))
    assert decode(frame_of(reply)) == reply
    assert reply.reason.startswith("[31mxxx")


def test_sums_by_order() -> None:
    book = report(zone(0, "DMA", (1, 2, 3)), zone(0, "Normal", (10,)), zone(1, "Normal", (0, 1)))
    assert book.free_bytes_by_order() == (11 * 4096, 3 * 8192, 3 * 16384)
    assert book.free_bytes_by_order(z for z in book.zones if z.node == 1) == (0, 8192)
    assert MemoryReport(0.0, 4096, {}, ()).free_bytes_by_order() == ()


def test_too_long_a_message_is_our_own_fault() -> None:
    with pytest.raises(InternalError):
        encode(ErrorReply(1, "x" * (1 << 20)))

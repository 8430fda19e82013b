from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.mqtt.command import MAX_COMMAND_BYTES, Memory, Request, parse_command
from ballast.policy.resize import OnFailure, ResizeRequest
from ballast_protocol.errors import OperatorError

GIB = 1 << 30


@pytest.mark.parametrize(
    "payload",
    [
        b"1G",
        b" 1.0 GiB\n",
        b"1073741824",
        b'"1G"',
        b'{"value": "1G"}',
        b'{"value": 1073741824}',
    ],
)
def test_the_ways_to_say_how_much(payload: bytes) -> None:
    assert parse_command(payload).value == GIB


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "is not a size"),
        (b"much", "is not a size"),
        (b"0", "greater than 0"),
        (b"-1", "is not a size"),
        (b'{"value": 0}', "greater than 0"),
        (b'{"value": true}', "valid integer"),
        (b'{"value": 1e30}', "valid integer"),
        (b'{"value": 99999999999999999999}', "value"),
        (b'{"value": null}', "value"),
        (b'{"value": 1, "timeout": "long"}', "timeout: "),
        (b'{"value": 1, "rate": -1}', "rate: "),
        (b'{"value": 1, "stall-timeout": []}', "stall-timeout: "),
        (b'{"value": 1, "on-failure": "cry"}', "on-failure: "),
        (b"{}", "value: Field required"),
        (b'{"value": 1, "speed": 2}', "speed: Extra inputs"),
        (b"{", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b"[" * 4000, "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b" " * (MAX_COMMAND_BYTES + 1), "more than 4096 bytes"),
    ],
)
def test_what_is_not_understood(payload: bytes, message: str) -> None:
    with pytest.raises(OperatorError, match=message) as caught:
        parse_command(payload)
    assert "1073741824" in caught.value.hint


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.text(max_size=50).map(lambda text: f'{{"value": {text}'.encode())
)
def test_garbage_is_refused(payload: bytes) -> None:
    with contextlib.suppress(OperatorError):
        assert parse_command(payload).value > 0


def test_how_a_resize_goes_can_be_said() -> None:
    command = {"value": "1G", "timeout": 5, "stall-timeout": 0, "rate": "64M"}
    payload = json.dumps({**command, "on-failure": "settle"}).encode()
    assert parse_command(payload).request() == ResizeRequest(
        target_bytes=GIB,
        timeout_seconds=5,
        stall_seconds=0,
        rate_bytes=64 << 20,
        on_failure=OnFailure.SETTLE,
    )
    assert parse_command(b"1G").request() == ResizeRequest(GIB)


def request(**fields: object) -> Request:
    return Request(**{"topic": "t", "payload": b"1G", "qos": 1, **fields})  # type: ignore[arg-type]


def test_only_the_brokers_own_repetition_is_a_redelivery() -> None:
    memory = Memory()
    assert not memory.is_redelivery(request(packet_id=1))
    assert memory.is_redelivery(request(packet_id=1, is_duplicate=True))
    # A new session counts from 1 again.
    assert not memory.is_redelivery(request(packet_id=1))
    # Marked as a repetition of something that never got here.
    assert not memory.is_redelivery(request(packet_id=2, is_duplicate=True))
    assert not memory.is_redelivery(request(packet_id=1, payload=b"2G", is_duplicate=True))
    assert not memory.is_redelivery(request(qos=0, is_duplicate=True))


def test_a_request_is_known_by_its_correlation() -> None:
    memory = Memory()
    first = request(correlation=b"1", response_topic="me")
    assert not memory.is_known(first)
    assert memory.is_known(request(correlation=b"1", response_topic="me", packet_id=7))
    assert memory.result(first) is None
    memory.finish(first, b"done")
    assert memory.result(first) == b"done"
    assert not memory.is_known(request(correlation=b"1", response_topic="somebody else"))
    assert not memory.is_known(request(correlation=b"2", response_topic="me"))


def test_without_a_correlation_every_request_is_new() -> None:
    memory = Memory()
    assert not memory.is_known(request())
    assert not memory.is_known(request())
    memory.finish(request(), b"")
    assert memory.result(request()) is None


def test_only_so_many_are_remembered() -> None:
    memory = Memory(limit=2)
    for number in range(3):
        assert not memory.is_known(request(correlation=bytes([number])))
        assert not memory.is_redelivery(request(packet_id=number))
    assert memory.is_known(request(correlation=b"\2"))
    assert not memory.is_known(request(correlation=b"\0"))
    memory.finish(request(correlation=b"\1"), b"late")
    assert not memory.is_redelivery(request(packet_id=0, is_duplicate=True))

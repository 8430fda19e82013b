from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.qmp import (
    Command,
    ErrorClass,
    RefusedError,
    Reply,
    ServerSession,
    Version,
    encode_error,
    encode_event,
)

VERSION = Version(1, 2, 3, "ballast 1.2.3")


def exchange(session: ServerSession, data: bytes) -> list[Any]:
    """Return the replies to `data`, decoded, and the commands in it."""
    session.receive_data(data)
    events: list[Any] = []
    while (event := session.next_event()) is not None:
        events.append(json.loads(event.data) if isinstance(event, Reply) else event)
    return events


def open_session() -> ServerSession:
    session = ServerSession(VERSION.to_json())
    assert exchange(session, b'{"execute": "qmp_capabilities"}') == [{"return": {}}]
    return session


def refusal(desc: str, error_class: str = "GenericError", **echo: object) -> dict[str, object]:
    return {"error": {"class": error_class, "desc": desc}, **echo}


def test_greeting() -> None:
    greeting = ServerSession(VERSION.to_json()).greeting()
    assert greeting.endswith(b"}\r\n")
    assert json.loads(greeting) == {
        "QMP": {
            "version": {
                "qemu": {"major": 1, "minor": 2, "micro": 3},
                "package": "ballast 1.2.3",
            },
            "capabilities": [],
        }
    }


def test_negotiation_comes_first() -> None:
    session = ServerSession(VERSION.to_json())
    expecting = "Expecting capabilities negotiation with 'qmp_capabilities'"
    [reply] = exchange(session, b'{"execute": "query-balloon", "id": 1}')
    assert reply == refusal(expecting, "CommandNotFound", id=1)
    assert not session.in_command_mode
    [reply] = exchange(session, b'{"execute": "qmp_capabilities", "id": 2}')
    assert reply == {"return": {}, "id": 2}
    assert session.in_command_mode
    assert exchange(session, b'{"execute": "query-balloon"}') == [Command("query-balloon", {}, {})]


def test_mode_changes_only_when_the_reply_is_taken() -> None:
    session = ServerSession(VERSION.to_json())
    session.receive_data(b'[]{"execute": "qmp_capabilities"}{"execute": "a"}')
    assert isinstance(session.next_event(), Reply)
    assert not session.in_command_mode
    assert session.next_event() == Reply(b'{"return": {}}\r\n')
    assert session.in_command_mode
    assert session.next_event() == Command("a", {}, {})


@pytest.mark.parametrize(
    ("enable", "desc"),
    [
        (["oob"], "Capability oob not available"),
        (["new"], "Parameter 'enable[0]' does not accept value 'new'"),
        ([1], "Invalid parameter type for 'enable[0]', expected: string"),
        ("oob", "Invalid parameter type for 'enable', expected: array"),
    ],
)
def test_capabilities_that_are_not_offered(enable: object, desc: str) -> None:
    session = ServerSession(VERSION.to_json())
    request = {"execute": "qmp_capabilities", "arguments": {"enable": enable}}
    assert exchange(session, json.dumps(request).encode()) == [refusal(desc)]
    assert not session.in_command_mode


def test_an_empty_list_of_capabilities_will_do() -> None:
    request = b'{"execute": "qmp_capabilities", "arguments": {"enable": []}}'
    assert exchange(ServerSession(VERSION.to_json()), request) == [{"return": {}}]


def test_negotiating_twice() -> None:
    done = "Capabilities negotiation is already complete, command ignored"
    [reply] = exchange(open_session(), b'{"execute": "qmp_capabilities", "id": null}')
    assert reply == refusal(done, "CommandNotFound", id=None)


@pytest.mark.parametrize(
    ("request_bytes", "desc"),
    [
        (b'{"execute": 1}', "QMP input member 'execute' must be a string"),
        (b'{"execute": "a", "arguments": []}', "QMP input member 'arguments' must be an object"),
        (b'{"execute": "a", "x": 1}', "QMP input member 'x' is unexpected"),
        (b'{"exec-oob": "a"}', "QMP input member 'exec-oob' is unexpected"),
        (b"{}", "QMP input lacks member 'execute'"),
    ],
)
def test_malformed_requests_are_refused_with_their_id(request_bytes: bytes, desc: str) -> None:
    session = open_session()
    assert exchange(session, request_bytes) == [refusal(desc)]
    with_id = json.dumps({**json.loads(request_bytes), "id": {"a": [7]}}).encode()
    assert exchange(session, with_id) == [refusal(desc, id={"a": [7]})]


@pytest.mark.parametrize("request_bytes", [b"[]", b"1 ", b'"execute"', b"null "])
def test_only_objects_are_requests(request_bytes: bytes) -> None:
    reply = refusal("QMP input must be a JSON object")
    assert exchange(open_session(), request_bytes) == [reply]


def test_syntax_errors_are_answered_and_the_session_goes_on() -> None:
    reply = refusal("JSON parse error, expecting value")
    assert exchange(open_session(), b'{"execute": }{"execute": "a"}') == [
        reply,
        Command("a", {}, {}),
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text("aé\"'\\"),
        lambda children: st.lists(children) | st.dictionaries(st.text("ab"), children),
        max_leaves=5,
    )
)
def test_any_id_comes_back(request_id: object) -> None:
    request = {"execute": "a", "arguments": {"x": 1}, "id": request_id}
    [command] = exchange(open_session(), json.dumps(request).encode())
    assert command.arguments == {"x": 1}
    assert json.loads(command.success([1])) == {"return": [1], "id": request_id}
    error = RefusedError("no", ErrorClass.DEVICE_NOT_ACTIVE)
    assert json.loads(command.failure(error)) == refusal("no", "DeviceNotActive", id=request_id)


def test_replies_are_ascii_lines() -> None:
    command = Command("a", {}, {"id": "é\n"})
    assert command.success({"x": "\u20ac"}) == (
        b'{"return": {"x": "\\u20ac"}, "id": "\\u00e9\\n"}\r\n'
    )


def test_a_number_that_json_cannot_say_is_not_said() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Command("a", {}, {}).success(float("nan"))


def test_errors_carry_their_hint() -> None:
    assert encode_error(RefusedError("no memory", hint="add some")) == (
        b'{"error": {"class": "GenericError", "desc": "no memory (add some)"}}\r\n'
    )


def test_event() -> None:
    assert json.loads(encode_event("BALLOON_CHANGE", {"actual": 5}, 1_700_000_000_123_456_789)) == {
        "event": "BALLOON_CHANGE",
        "data": {"actual": 5},
        "timestamp": {"seconds": 1_700_000_000, "microseconds": 123_456},
    }


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_no_bytes_break_the_session(chunks: list[bytes]) -> None:
    session = open_session()
    for chunk in chunks:
        exchange(session, chunk)
    exchange(session, b"\xff")
    assert exchange(session, b'{"execute": "query-balloon", "id": 1}') == [
        Command("query-balloon", {}, {"id": 1})
    ]


def oob_session() -> ServerSession:
    session = ServerSession(VERSION.to_json(), offers_out_of_band=True)
    assert json.loads(session.greeting())["QMP"]["capabilities"] == ["oob"]
    enable = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    assert exchange(session, enable) == [{"return": {}}]
    return session


def test_out_of_band_has_to_be_enabled() -> None:
    session = ServerSession(VERSION.to_json(), offers_out_of_band=True)
    exchange(session, b'{"execute": "qmp_capabilities"}')
    [reply] = exchange(session, b'{"exec-oob": "yank", "id": 1}')
    assert reply == refusal("QMP input member 'exec-oob' is unexpected", id=1)
    [command] = exchange(oob_session(), b'{"exec-oob": "yank", "id": 1}')
    assert command == Command("yank", {}, {"id": 1}, is_out_of_band=True)


# The replies of QEMU 11.1.3.
@pytest.mark.parametrize(
    ("request_text", "complaint"),
    [
        (
            b'{"exec-oob": "a", "execute": "b", "id": 7}',
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        (b'{"exec-oob": 5, "id": 7}', "QMP input member 'exec-oob' must be a string"),
        (
            b'{"exec-oob": "qmp_capabilities", "id": 7}',
            "The command qmp_capabilities does not support OOB",
        ),
    ],
)
def test_out_of_band_requests_that_are_wrong(request_text: bytes, complaint: str) -> None:
    assert exchange(oob_session(), request_text) == [refusal(complaint, id=7)]

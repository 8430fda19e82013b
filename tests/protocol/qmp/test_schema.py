from __future__ import annotations

import pytest

from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.schema import Argument, Kind, RefusedError, check_arguments

DECLARED = (
    Argument("value", Kind.INTEGER),
    Argument("seconds", Kind.NUMBER, is_optional=True),
    Argument("fresh", Kind.BOOLEAN, is_optional=True),
    Argument("action", Kind.STRING, is_optional=True, choices=("start", "stop")),
    Argument("names", Kind.ARRAY, is_optional=True, choices=("a", "b")),
    Argument("anything", Kind.ANY, is_optional=True),
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": -1},
        {"value": (1 << 63) - 1, "seconds": 1, "fresh": False, "action": "stop"},
        {"value": 1, "seconds": 0.5, "names": [], "anything": None},
        {"value": 1, "names": ["b", "a"], "anything": {"x": [1]}},
    ],
)
def test_accepts(arguments: dict[str, JsonValue]) -> None:
    check_arguments(DECLARED, arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "Parameter 'value' is missing"),
        ({"x": 1}, "Parameter 'value' is missing"),
        ({"value": 1, "x": 1}, "Parameter 'x' is unexpected"),
        ({"value": "1"}, "Invalid parameter type for 'value', expected: integer"),
        ({"value": True}, "Invalid parameter type for 'value', expected: integer"),
        ({"value": 1.0}, "Invalid parameter type for 'value', expected: integer"),
        ({"value": None}, "Invalid parameter type for 'value', expected: integer"),
        ({"value": 1 << 63}, "Invalid parameter type for 'value', expected: integer"),
        ({"value": 1, "seconds": True}, "Invalid parameter type for 'seconds', expected: number"),
        ({"value": 1, "fresh": 1}, "Invalid parameter type for 'fresh', expected: boolean"),
        ({"value": 1, "action": 1}, "Invalid parameter type for 'action', expected: string"),
        ({"value": 1, "action": "go"}, "Parameter 'action' does not accept value 'go'"),
        ({"value": 1, "names": "a"}, "Invalid parameter type for 'names', expected: array"),
        (
            {"value": 1, "names": ["a", 1]},
            "Invalid parameter type for 'names[1]', expected: string",
        ),
        ({"value": 1, "names": ["c"]}, "Parameter 'names[0]' does not accept value 'c'"),
    ],
)
def test_refuses_in_the_words_of_qemu(arguments: dict[str, JsonValue], complaint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_arguments(DECLARED, arguments)
    assert str(caught.value) == complaint

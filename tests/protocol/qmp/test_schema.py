from __future__ import annotations

import pytest

from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.schema import RefusedError, check_arguments, check_value
from ballast_protocol.qmp.types import (
    ANY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    UNSIGNED,
    Choice,
    ListOf,
    Member,
    Record,
    optional,
)

DECLARED = (
    Member("value", INTEGER),
    Member("seconds", NUMBER, is_optional=True),
    Member("fresh", BOOLEAN, is_optional=True),
    Member("action", Choice(("start", "stop")), is_optional=True),
    Member("names", ListOf(Choice(("a", "b"))), is_optional=True),
    Member("anything", ANY, is_optional=True),
    Member("range", Record((Member("first", INTEGER), Member("to", STRING))), is_optional=True),
    Member("limit", optional(NUMBER), is_optional=True),
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": -1},
        {"value": (1 << 63) - 1, "seconds": 1, "fresh": False, "action": "stop"},
        {"value": 1, "seconds": 0.5, "names": [], "anything": None},
        {"value": 1, "names": ["b", "a"], "anything": {"x": [1]}},
        {"value": 1, "range": {"first": 1, "to": "end"}, "limit": None},
        {"value": 1, "limit": 0.5},
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
        ({"value": 1, "range": []}, "Invalid parameter type for 'range', expected: object"),
        ({"value": 1, "range": {"first": 1}}, "Parameter 'range.to' is missing"),
        (
            {"value": 1, "range": {"first": 1, "to": "x", "by": 1}},
            "Parameter 'range.by' is unexpected",
        ),
        ({"value": 1, "limit": "x"}, "Invalid parameter type for 'limit', expected: null"),
    ],
)
def test_refuses_in_the_words_of_qemu(arguments: dict[str, JsonValue], complaint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_arguments(DECLARED, arguments)
    assert str(caught.value) == complaint


def test_an_unsigned_number_has_64_bits() -> None:
    check_value("x", UNSIGNED, (1 << 64) - 1)
    with pytest.raises(RefusedError, match="expected: integer"):
        check_value("x", UNSIGNED, 1 << 64)

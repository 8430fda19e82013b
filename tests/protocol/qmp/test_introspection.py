from __future__ import annotations

from typing import Any

from ballast_protocol.qmp.introspection import CommandType, describe, merge
from ballast_protocol.qmp.types import (
    ANY,
    EMPTY,
    INTEGER,
    STRING,
    UNSIGNED,
    Choice,
    ListOf,
    Member,
    Record,
    optional,
)

SIZES = Record((Member("bytes", UNSIGNED, "How many."), Member("name", optional(STRING))), "Sizes")
COMMANDS = {
    "resize": CommandType(
        (
            Member("value", INTEGER, "Bytes."),
            Member("how", Choice(("fast", "slow"), "Pace"), is_optional=True),
        ),
        ListOf(SIZES),
    ),
    "forget": CommandType((), EMPTY),
    "get": CommandType((Member("names", ListOf(STRING)),), ANY),
}


def described() -> dict[str, Any]:
    infos = describe(COMMANDS, {"RESIZED": Record((Member("actual", INTEGER),))})
    names = [each["name"] for each in infos]
    assert len(set(names)) == len(names)
    return {str(each["name"]): each for each in infos}


def test_has_the_form_of_qemu() -> None:
    by_name = described()
    command = by_name["resize"]
    assert command["meta-type"] == "command"
    arguments = by_name[command["arg-type"]]
    assert arguments["meta-type"] == "object"
    value, how = arguments["members"]
    assert value == {"name": "value", "type": "int"}
    assert how == {"name": "how", "type": how["type"], "default": None}
    assert by_name[how["type"]] == {
        "name": how["type"],
        "meta-type": "enum",
        "members": [{"name": "fast"}, {"name": "slow"}],
        "values": ["fast", "slow"],
    }
    returned = by_name[command["ret-type"]]
    assert returned["meta-type"] == "array"
    assert returned["name"] == f"[{returned['element-type']}]"
    name_type = by_name[returned["element-type"]]["members"][1]["type"]
    assert by_name[name_type]["members"] == [{"type": "str"}, {"type": "null"}]
    assert by_name["int"] == {"name": "int", "meta-type": "builtin", "json-type": "int"}
    assert by_name["[str]"]["element-type"] == "str"
    assert by_name["any"]["json-type"] == "value"


def test_types_without_a_difference_are_one() -> None:
    by_name = described()
    assert by_name["forget"]["arg-type"] == by_name["forget"]["ret-type"]
    assert by_name["RESIZED"]["meta-type"] == "event"
    assert by_name[by_name["RESIZED"]["arg-type"]]["members"] == [{"name": "actual", "type": "int"}]


def test_every_type_that_is_named_is_described() -> None:
    by_name = described()
    for info in list(by_name.values()):
        for key in ("arg-type", "ret-type", "element-type"):
            assert info.get(key, "int") in by_name
        for member in info.get("members", ()):
            assert member.get("type", "int") in by_name


def test_merging_keeps_what_the_other_side_says() -> None:
    theirs: list[Any] = [
        {"name": "resize", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
        {"name": "0", "meta-type": "object", "members": []},
        {"name": "int", "meta-type": "builtin", "json-type": "int"},
    ]
    merged: list[Any] = merge(theirs, described().values())
    names = [each["name"] for each in merged]
    assert len(set(names)) == len(names)
    by_name = {each["name"]: each for each in merged}
    assert by_name["resize"]["arg-type"] == "0"
    assert by_name[by_name["forget"]["arg-type"]] == {
        "name": by_name["forget"]["arg-type"],
        "meta-type": "object",
        "members": [],
    }

"""The types of QMP: what a command takes, what it returns, what an event carries.

They are QAPI's (QEMU's docs/devel/qapi-code-gen.rst). A declaration made of them is the single
source of the check of a command's arguments (`schema`), of `query-qmp-schema` (`introspection`) and
of the reference page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Builtin:
    """A type that JSON knows.

    Attributes:
        name: QAPI's name.
        json_type: QAPI's name of what stands in JSON.
        expected: The name in QEMU's complaint about a value of another type.
        values: What an integer may be.
    """

    name: str
    json_type: str
    expected: str
    values: range = range(0)


INTEGER = Builtin("int", "int", "integer", range(-(1 << 63), 1 << 63))
UNSIGNED = Builtin("int", "int", "integer", range(1 << 64))
"""QAPI's `uint64` and `size`, of which introspection says `int` too."""

NUMBER = Builtin("number", "number", "number")
BOOLEAN = Builtin("bool", "boolean", "boolean")
STRING = Builtin("str", "string", "string")
NULL = Builtin("null", "null", "null")
ANY = Builtin("any", "value", "any")


@dataclass(frozen=True)
class Choice:
    """One of a few strings.

    Attributes:
        values: All that there are.
        name: What to call it in a reference.
    """

    values: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class ListOf:
    """A JSON array.

    Attributes:
        element: The type of each of its elements.
    """

    element: Type


@dataclass(frozen=True)
class Either:
    """A value of one of several types, which JSON can tell apart.

    Attributes:
        options: The types.
    """

    options: tuple[Type, ...]


@dataclass(frozen=True)
class Member:
    """One member of a JSON object, or an argument of a command.

    Attributes:
        name: Its key.
        type: Its value's type.
        doc: What it means, for a reference.
        is_optional: Whether it may be left out.
    """

    name: str
    type: Type
    doc: str = ""
    is_optional: bool = False


@dataclass(frozen=True)
class Record:
    """A JSON object.

    Attributes:
        members: What it may hold, and what it must.
        name: What to call it in a reference.
    """

    members: tuple[Member, ...]
    name: str = ""


Type = Builtin | Choice | ListOf | Either | Record

EMPTY = Record(())
"""What commands return that have nothing to say."""


def optional(some: Type) -> Either:
    """Return the type of a value that may be null because it is not known."""
    return Either((some, NULL))

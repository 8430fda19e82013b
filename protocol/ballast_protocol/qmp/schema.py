"""What a command's arguments must be, and how QEMU words it when they are not.

A declared `Argument` is the single source: the checks below read it, and so can anything that has
to describe the command. The texts are those of QEMU's qapi/qobject-input-visitor.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp.json_document import JsonValue

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


class ErrorClass(Enum):
    """The `class` member of an error reply (QEMU's qapi/error.json), for clients to act on."""

    GENERIC_ERROR = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    KVM_MISSING_CAP = "KVMMissingCap"
    TIMED_OUT = "TimedOut"
    """Not QEMU's: only our own commands answer with it, which the specification allows."""


class RefusedError(OperatorError):
    """A QMP command that is answered with an error.

    Attributes:
        error_class: The `class` of the reply.
    """

    def __init__(
        self, message: str, error_class: ErrorClass = ErrorClass.GENERIC_ERROR, *, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.error_class = error_class


class Kind(Enum):
    """JSON types, by the names that QEMU's error texts use."""

    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    STRING = "string"
    ARRAY = "array"
    ANY = "any"


@dataclass(frozen=True)
class Argument:
    """One member of a command's `arguments`.

    Attributes:
        name: Its key.
        kind: The JSON type it must have. An array is one of strings.
        is_optional: Whether it may be left out.
        choices: The values that a string, or each string of an array, may have; empty if any.
    """

    name: str
    kind: Kind
    is_optional: bool = False
    choices: tuple[str, ...] = ()


def check_arguments(declared: Sequence[Argument], arguments: Mapping[str, JsonValue]) -> None:
    """Check a command's arguments: all there, of the right kind, none besides.

    Raises:
        RefusedError: In the order in which QEMU looks: declared arguments first, then strangers.
    """
    for argument in declared:
        if argument.name in arguments:
            check_value(argument, arguments[argument.name])
        elif not argument.is_optional:
            raise RefusedError(f"Parameter '{argument.name}' is missing")
    known = {argument.name for argument in declared}
    for name in arguments:
        if name not in known:
            raise RefusedError(f"Parameter '{name}' is unexpected")


def check_value(argument: Argument, value: object) -> None:
    """Check one value against its declaration.

    Raises:
        RefusedError: It has the wrong kind, or is not among the choices.
    """
    _check_kind(argument.name, argument.kind, value)
    if isinstance(value, list) and argument.kind is Kind.ARRAY:
        for index, element in enumerate(value):
            name = f"{argument.name}[{index}]"
            check_value(Argument(name, Kind.STRING, choices=argument.choices), element)
    elif argument.choices and value not in argument.choices:
        raise RefusedError(f"Parameter '{argument.name}' does not accept value '{value}'")


def _check_kind(name: str, kind: Kind, value: object) -> None:
    # A bool is an int to Python and a type of its own to JSON.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        Kind.INTEGER: is_number and isinstance(value, int) and _INT64_MIN <= value <= _INT64_MAX,
        Kind.NUMBER: is_number,
        Kind.BOOLEAN: isinstance(value, bool),
        Kind.STRING: isinstance(value, str),
        Kind.ARRAY: isinstance(value, list),
        Kind.ANY: True,
    }
    if not fits[kind]:
        raise RefusedError(f"Invalid parameter type for '{name}', expected: {kind.value}")

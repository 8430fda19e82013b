"""What a command's arguments must be, and how QEMU words it when they are not.

The declarations are those of `types`, the texts those of QEMU's qapi/qobject-input-visitor.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.types import (
    ANY,
    BOOLEAN,
    NULL,
    NUMBER,
    STRING,
    Builtin,
    Choice,
    Either,
    ListOf,
    Member,
    Record,
    Type,
)

_PYTHON_TYPES: dict[Builtin, type | tuple[type, ...]] = {
    NUMBER: (int, float),
    BOOLEAN: bool,
    STRING: str,
    NULL: type(None),
    ANY: object,
}


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


def check_arguments(declared: Sequence[Member], arguments: Mapping[str, JsonValue]) -> None:
    """Check a command's arguments: all there, of the right type, none besides.

    Raises:
        RefusedError: In the order in which QEMU looks: declared arguments first, then strangers.
    """
    _check_members("", declared, arguments)


def _check_members(prefix: str, declared: Sequence[Member], values: Mapping[str, object]) -> None:
    for member in declared:
        if member.name in values:
            check_value(f"{prefix}{member.name}", member.type, values[member.name])
        elif not member.is_optional:
            raise RefusedError(f"Parameter '{prefix}{member.name}' is missing")
    known = {member.name for member in declared}
    for name in values:
        if name not in known:
            raise RefusedError(f"Parameter '{prefix}{name}' is unexpected")


def check_value(name: str, declared: Type, value: object) -> None:
    """Check one value against its declaration.

    Args:
        name: What it is called in a complaint.
        declared: The type that it should have.
        value: The value.

    Raises:
        RefusedError: It has another type, or is not among the choices.
    """
    if isinstance(declared, Builtin):
        if not _fits(declared, value):
            raise _wrong_type(name, declared.expected)
    elif isinstance(declared, Choice):
        check_value(name, STRING, value)
        if value not in declared.values:
            raise RefusedError(f"Parameter '{name}' does not accept value '{value}'")
    elif isinstance(declared, ListOf):
        if not isinstance(value, list):
            raise _wrong_type(name, "array")
        for index, element in enumerate(value):
            check_value(f"{name}[{index}]", declared.element, element)
    elif isinstance(declared, Record):
        if not isinstance(value, dict):
            raise _wrong_type(name, "object")
        _check_members(f"{name}.", declared.members, value)
    else:
        _check_either(name, declared, value)


def _check_either(name: str, declared: Either, value: object) -> None:
    for option in declared.options:
        try:
            check_value(name, option, value)
        except RefusedError as error:
            last = error
        else:
            return
    raise last


def _fits(declared: Builtin, value: object) -> bool:
    # A bool is an int to Python and a type of its own to JSON.
    if isinstance(value, bool):
        return declared in (BOOLEAN, ANY)
    if declared.values:
        return isinstance(value, int) and value in declared.values
    return isinstance(value, _PYTHON_TYPES[declared])


def _wrong_type(name: str, expected: str) -> RefusedError:
    return RefusedError(f"Invalid parameter type for '{name}', expected: {expected}")

"""Reads the JSON objects of the agent channel without trusting any of it.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from ballast_protocol.errors import MalformedError

U64_MAX = (1 << 64) - 1
MAX_TEXT = 256
"""Characters in the longest text that a field may have."""
_LIST_MAX = 64


def parse_object(payload: bytes, place: str) -> Fields:
    """Return the fields of a payload; `place` names it in errors.

    Raises:
        MalformedError: If the payload is not a JSON object in ASCII.
    """
    try:
        value = json.loads(payload.decode("ascii"), parse_constant=_refuse_constant)
    # A hostile payload can nest deeper than the parser can follow.
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"a payload is not JSON: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise MalformedError("a payload is not a JSON object")
    return Fields(place, value)


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"a payload has {name} for a number")


class Fields:
    """One untrusted JSON object; reading a field that is not as asked raises `MalformedError`."""

    def __init__(self, place: str, fields: Mapping[str, object]) -> None:
        self._place = place
        self._fields = fields

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise `MalformedError` about a field."""
        raise MalformedError(f"{self._place}: {name} {why}")

    def integer(self, name: str, high: int = U64_MAX, low: int = 0) -> int:
        """Return a whole number from `low` to `high`."""
        return self._checked_integer(name, self._fields.get(name), high, low)

    def _checked_integer(self, name: str, value: object, high: int, low: int = 0) -> int:
        if type(value) is not int or not low <= value <= high:
            self.refuse(name, f"is not a whole number from {low} to {high}")
        return value

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        value = self._fields.get(name)
        if not isinstance(value, bool):
            self.refuse(name, "is neither true nor false")
        return value

    def number(self, name: str, high: float, low: float = 0.0) -> float:
        """Return a number from `low` to `high`."""
        value = self._fields.get(name)
        if not (type(value) is int or type(value) is float) or not low <= value <= high:
            self.refuse(name, f"is not a number from {low:g} to {high:g}")
        return float(value)

    def text(self, name: str) -> str:
        """Return a short printable text."""
        return self._checked_text(name, self._fields.get(name))

    def _checked_text(self, name: str, value: object) -> str:
        # It ends up in logs and terminals, so no control characters.
        if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
            self.refuse(name, f"is not printable text of up to {MAX_TEXT} characters")
        return value

    def _list(self, name: str, limit: int) -> list[object]:
        value = self._fields.get(name)
        if not isinstance(value, list) or len(value) > limit:
            self.refuse(name, f"is not a list of up to {limit}")
        return value

    def integers(self, name: str, limit: int = _LIST_MAX) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        return tuple(self._checked_integer(name, v, U64_MAX) for v in self._list(name, limit))

    def rows(self, name: str, width: int, limit: int, low: int = 0) -> list[tuple[int, ...]]:
        """Return a list of at most `limit` lists of `width` whole numbers each."""
        rows = []
        for row in self._list(name, limit):
            if not isinstance(row, list) or len(row) != width:
                self.refuse(name, f"is not made of lists of {width}")
            rows.append(tuple(self._checked_integer(name, v, U64_MAX, low) for v in row))
        return rows

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a short list of texts."""
        return tuple(self._checked_text(name, v) for v in self._list(name, _LIST_MAX))

    def _inner(self, name: str, value: object) -> Fields:
        if not isinstance(value, dict):
            self.refuse(name, "is not an object")
        return Fields(f"{self._place}, {name}", value)

    def inner(self, name: str) -> Fields:
        """Return an object within this one."""
        return self._inner(name, self._fields.get(name))

    def inners(self, name: str, limit: int) -> list[Fields]:
        """Return a list of at most `limit` objects within this one."""
        return [self._inner(name, value) for value in self._list(name, limit)]

    def is_null(self, name: str) -> bool:
        """Tell whether a field is absent or null."""
        return self._fields.get(name) is None

    def integers_by_name(self, high: int) -> dict[str, int]:
        """Return all fields, whatever their names, as whole numbers from 0 to `high`."""
        if len(self._fields) > _LIST_MAX:
            self.refuse("it", f"has more than {_LIST_MAX} fields")
        names = [self._checked_text("a name", name) for name in self._fields]
        return {name: self.integer(name, high) for name in names}

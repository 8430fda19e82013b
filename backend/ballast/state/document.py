"""Records that hold a dataclass."""

from __future__ import annotations

from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ballast.state.record import Record
from ballast_protocol.errors import StateError

Content = TypeVar("Content")


@cache
def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """Return what makes JSON of a type; to make that takes longer than a whole takeover may."""
    return TypeAdapter(kind)


class Document(Generic[Content]):
    """A record whose contents are a dataclass, as JSON."""

    def __init__(self, record: Record, kind: type[Content], form: int = 1) -> None:
        """Use `record` for values of one type.

        Args:
            record: Where they are kept.
            kind: A dataclass of numbers, strings, enumerations, and dataclasses, lists, tuples and
                dictionaries of such.
            form: The format; raised when a field changes its meaning.
        """
        self._record = record
        self._adapter: TypeAdapter[Content] = adapter_of(kind)  # type: ignore[arg-type]
        self._form = form

    def load(self) -> Content | None:
        """Return the value, or None if none was ever saved.

        Raises:
            StateError: It was saved by a later version in a format unknown here, or makes no sense.
        """
        data = self._record.load()
        if data is None:
            return None
        if self._record.form > self._form:
            raise StateError(
                f"the saved {self._record.name!r} is of format {self._record.form}, and this "
                f"Ballast knows up to {self._form}",
                hint="Take over with the version that wrote it, or a later one.",
            )
        try:
            return self._adapter.validate_json(data)
        except ValidationError as error:
            raise StateError(f"the saved {self._record.name!r} makes no sense: {error}") from error

    def save(self, value: Content) -> None:
        """Replace the value, as a whole.

        Raises:
            InternalError: There is not so much room.
        """
        self._record.save(self._adapter.dump_json(value), self._form)

"""A fixed-layout binary structure, declared once as a frozen dataclass.

::

    @dataclass(frozen=True, slots=True)
    class VringState(Wire, byte_order=NATIVE):
        index: U32
        num: U32

An enumeration as a field is annotated with the integer that carries it: `Annotated[Request, "I"]`.
Meant for control messages; a hot loop uses the `struct.Struct` in `LAYOUT` directly.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

from ballast_protocol.errors import InternalError, MalformedError, TruncatedError

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]

LITTLE = "<"
"""Little-endian without padding: everything that virtio 1.x puts into guest memory."""

NATIVE = "="
"""The host's own byte order without padding: everything that vhost-user sends."""


class Wire:
    """Base of the structures. A subclass lists its fields in wire order.

    Attributes:
        LAYOUT: The compiled layout, for loops where an object per entry would cost too much.
        SIZE: Bytes of the structure.
    """

    LAYOUT: ClassVar[struct.Struct]
    SIZE: ClassVar[int]
    __slots__ = ()
    _names: ClassVar[tuple[str, ...]]
    _enums: ClassVar[tuple[tuple[int, type[Enum]], ...]]

    def __init_subclass__(cls, byte_order: str | None = None) -> None:
        # dataclass(slots=True) makes the class a second time, without the keyword: by then the
        # layout is there.
        if byte_order is None:
            return
        fields = {
            name: get_args(hint)
            for name, hint in get_type_hints(cls, include_extras=True).items()
            if get_origin(hint) is Annotated
        }
        cls._names = tuple(fields)
        cls._enums = tuple(
            (position, kind)
            for position, (kind, _) in enumerate(fields.values())
            if issubclass(kind, Enum)
        )
        cls.LAYOUT = struct.Struct(byte_order + "".join(code for _, code in fields.values()))
        cls.SIZE = cls.LAYOUT.size

    def pack(self) -> bytes:
        """Return the structure's bytes.

        Raises:
            InternalError: A field's value does not fit its width.
        """
        try:
            return self.LAYOUT.pack(*(getattr(self, name) for name in self._names))
        except struct.error as error:
            raise InternalError(f"{self!r} cannot be packed: {error}") from error

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Self:
        """Read the structure that starts at `offset`; what follows it is left alone.

        Raises:
            TruncatedError: Fewer than `SIZE` bytes are left.
            MalformedError: A field holds a number that its enumeration does not have.
        """
        if len(data) - offset < cls.SIZE:
            raise TruncatedError(
                f"{cls.__name__} has {cls.SIZE} bytes, but only {max(len(data) - offset, 0)} came"
            )
        values: list[Any] = list(cls.LAYOUT.unpack_from(data, offset))
        try:
            for position, kind in cls._enums:
                values[position] = kind(values[position])
        except ValueError as error:
            raise MalformedError(f"{cls.__name__}: {error}") from error
        return cls(*values)

"""A table of registers: each declared once, with its place, its width and its writable bits."""

from __future__ import annotations

from enum import Enum

from ballast_protocol.errors import InternalError


class RegisterTable(Enum):
    """Base of the tables: each member is (offset, width) or (offset, width, writable bits).

    Attributes:
        offset: Bytes from the start of the structure.
        width: Bytes.
        writable: The bits that keep what is written.
    """

    def __init__(self, offset: int, width: int, writable: int = 0) -> None:
        self.offset = offset
        self.width = width
        self.writable = writable

    def get(self, space: bytes | bytearray, base: int = 0) -> int:
        """Return the register's value in a structure that starts at `base`."""
        start = base + self.offset
        return int.from_bytes(space[start : start + self.width], "little")

    def put(self, space: bytearray, value: int, base: int = 0) -> None:
        """Set the register in a structure that starts at `base`.

        Raises:
            InternalError: The value does not fit.
        """
        start = base + self.offset
        try:
            space[start : start + self.width] = value.to_bytes(self.width, "little")
        except OverflowError as error:
            raise InternalError(f"{self} has {self.width} bytes: {value:#x}") from error

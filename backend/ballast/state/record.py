"""A named piece of state that is replaced as a whole, whenever its writer is killed.

Two copies take turns. The one being written is marked as unfinished until everything of it is
there; its sequence number is stored last, as one aligned word over the mark. So after a kill a copy
is unfinished or whole, and the whole one with the higher number is the record. A copy that has a
number and does not match its checksum was not torn by a kill, but damaged: it is refused, because
the other copy would be a moment that has passed.
"""

from __future__ import annotations

import struct
import zlib

from ballast_protocol.errors import InternalError, StateError

MAX_NAME_BYTES = 32

UNUSED, UNFINISHED = 0, int.from_bytes(b"WRITING.", "little")
"""In place of a sequence number: nothing was ever written; something was, and not to its end."""

FIRST = 5
"""The first sequence number. With two bits set, as in the next, no single fault makes it unused."""

_SEQUENCE_BYTES = 8
_BODY = struct.Struct(f"<III{MAX_NAME_BYTES}s")
"""After the sequence number: checksum, format, length, name. The checksum is of the number, of what
follows the checksum, and of the contents."""

_CHECKSUM_BYTES = 4
_DATA_OFFSET = _SEQUENCE_BYTES + _BODY.size
OVERHEAD_BYTES = _DATA_OFFSET
"""What a copy needs beyond its contents."""


class RecordCopy:
    """One of the two places of a record."""

    def __init__(self, view: memoryview) -> None:
        """Use `view`, which starts at a multiple of eight bytes."""
        self._view = view
        self._sequence = view[:_SEQUENCE_BYTES].cast("Q")

    @property
    def sequence(self) -> int:
        """Its number, or `UNUSED`, or `UNFINISHED`."""
        return self._sequence[0]

    @property
    def capacity(self) -> int:
        """How many bytes of contents it can hold."""
        return len(self._view) - _DATA_OFFSET

    def read(self) -> tuple[str, int, bytes]:
        """Return name, format and contents.

        Raises:
            StateError: It is damaged.
        """
        checksum, form, length, name = _BODY.unpack_from(self._view, _SEQUENCE_BYTES)
        if length > self.capacity:
            raise StateError(f"a record of the saved state claims {length} bytes")
        end = _DATA_OFFSET + length
        if checksum != _checksum(self.sequence, self._view[_SEQUENCE_BYTES:end]):
            raise StateError("a record of the saved state does not match its checksum")
        label = name.rstrip(b"\0").decode("ascii", "replace")
        return label, form, bytes(self._view[_DATA_OFFSET:end])

    def write(self, sequence: int, name: bytes, form: int, data: bytes) -> None:
        """Replace everything; unfinished until the last store."""
        body = _BODY.pack(0, form, len(data), name) + data
        body = _checksum(sequence, body).to_bytes(_CHECKSUM_BYTES, "little") + body[4:]
        self._sequence[0] = UNFINISHED
        self._view[_SEQUENCE_BYTES : _SEQUENCE_BYTES + len(body)] = body
        self._sequence[0] = sequence

    def close(self) -> None:
        """Let go of the memory."""
        self._sequence.release()
        self._view.release()


def _checksum(sequence: int, body: bytes | memoryview) -> int:
    """Return the checksum of a body, whose own first four bytes do not count."""
    start = zlib.crc32(sequence.to_bytes(_SEQUENCE_BYTES, "little"))
    return zlib.crc32(body[_CHECKSUM_BYTES:], start)


def _newest(even: int, odd: int) -> int:
    """Return the number of the copy that counts, 0 if there is none yet.

    Even numbers are in the first copy, odd ones in the second. A copy is unused only until the
    record is saved for the first time (the second copy) or the second time (the first).

    Raises:
        StateError: No writer, whenever it was killed, can have left these two.
    """
    whole = [number for number in (even, odd) if number not in (UNUSED, UNFINISHED)]
    newest = max(whole, default=0)
    possible = (
        (even not in whole or even % 2 == 0)
        and (odd not in whole or odd % 2 == 1)
        and (len(whole) < 2 or abs(even - odd) == 1)
        and (even != UNUSED or newest in (0, FIRST))
        and (odd != UNUSED or newest == 0)
        and (even != UNFINISHED or bool(whole))
    )
    if not possible:
        raise StateError("the numbers of a record of the saved state do not belong together")
    return newest


class Record:
    """The two copies together.

    Attributes:
        name: What it is called; empty as long as nobody uses it.
        form: The format of the contents that `load` returns, a number that its owner gave.
    """

    def __init__(self, copies: tuple[RecordCopy, RecordCopy]) -> None:
        """Find the copy that counts.

        Raises:
            StateError: One of them is damaged, or they do not belong together.
        """
        self._copies = copies
        self.name, self.form = "", 0
        self._data: bytes | None = None
        self._sequence = _newest(*(copy.sequence for copy in copies))
        names = {copy.read()[0] for copy in copies if copy.sequence not in (UNUSED, UNFINISHED)}
        if len(names) > 1:
            raise StateError("the two copies of a record of the saved state have different names")
        if self._sequence:
            self.name, self.form, self._data = copies[self._sequence & 1].read()

    def claim(self, name: str) -> None:
        """Give an unused record its name; it takes effect when something is saved.

        Raises:
            InternalError: It is not a short plain name.
        """
        if not name.isascii() or not 0 < len(name) <= MAX_NAME_BYTES:
            raise InternalError(f"a record cannot be called {name!r}")
        self.name = name

    def load(self) -> bytes | None:
        """Return the contents, or None if none were ever saved."""
        return self._data

    def save(self, data: bytes, form: int = 1) -> None:
        """Replace the contents: a kill leaves these or those before.

        Raises:
            InternalError: There is not so much room.
        """
        if len(data) > self._copies[0].capacity:
            raise InternalError(f"{len(data)} bytes do not fit the record {self.name!r}")
        following = self._sequence + 1 if self._sequence else FIRST
        self._copies[following & 1].write(following, self.name.encode(), form, data)
        self._sequence, self._data, self.form = following, data, form

    def close(self) -> None:
        """Let go of the memory."""
        for copy in self._copies:
            copy.close()

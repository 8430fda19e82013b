"""What a session leaves for a successor, and how it is kept up to date.

Everything that messages change is one record, which is replaced as a whole together with the
position in the stream of messages: so a message that was served and one that was not are the only
two moments there are. Most messages change nothing of it; for them only the position is saved, as a
cell that says how far it is from that of the newest record. Where a cell has no room for that, the
position has a small record of its own.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ballast.state.document import adapter_of
from ballast.state.file import StateFile
from ballast.state.record import Record
from ballast.transport.reader import Position
from ballast_protocol.errors import StateError

_SO_COOKIE = 57
"""asm-generic/socket.h; Python has no name for it."""

_HEAD = struct.Struct("<QQIQQ")
"""Of which socket, the how manieth, and the fields of `Position`."""

POSITION_CELL = 8
"""Which cell of a VM's state file is the position."""

_NUMBER_BITS, _PARITY_BITS, _SIZE_BITS, _REPLY_BITS = 4, 2, 10, 16
"""What the cell holds, lowest first: the end of the newest record's number, the message's parity
and length, and how much has been replied since that record."""

_NO_PARITY = 3
"""In a cell: the position is that of the record."""

SavedT = TypeVar("SavedT")


@dataclass(frozen=True, slots=True)
class _Head:
    """What both records begin with.

    Attributes:
        number: Grows with every save.
        position: Up to where messages have been served.
    """

    number: int
    position: Position


class SessionRecords(Generic[SavedT]):
    """The two records of one connection, and its cell."""

    def __init__(
        self, state: StateFile, sock: socket.socket, name: str, kind: type[SavedT], form: int = 1
    ) -> None:
        """Use a VM's state for what is spoken over a socket.

        Args:
            state: Where the records are.
            sock: The connection; what was saved for another one is void.
            name: What the records are called.
            kind: A dataclass, as `state.document.Document` takes it.
            form: Its format; raised when a field changes its meaning.
        """
        self._cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
        self._all, self._head = state.record(name), state.record(f"{name}-position")
        self._adapter: TypeAdapter[SavedT] = adapter_of(kind)  # type: ignore[arg-type]
        self._form = form
        self._cells = state.cells
        # Goes on from one connection to the next: a cell must not fit another one's record.
        self._number = max(self._number_of(self._all), self._number_of(self._head))
        self._base: Position | None = None

    @staticmethod
    def _number_of(record: Record) -> int:
        data = record.load() or b""
        return _HEAD.unpack_from(data)[1] if len(data) >= _HEAD.size else 0

    def load(self) -> tuple[SavedT, Position] | None:
        """Return what a predecessor left on this connection, or None if there was none.

        Raises:
            StateError: It cannot be used.
        """
        head, newer = self._load_head(self._all), self._load_head(self._head)
        if head is None:
            return None
        if self._all.form > self._form:
            raise StateError(
                f"the saved {self._all.name!r} is of format {self._all.form}, and this Ballast "
                f"knows up to {self._form}",
                hint="Take over with the version that wrote it, or a later one.",
            )
        try:
            saved = self._adapter.validate_json((self._all.load() or b"")[_HEAD.size :])
        except ValidationError as error:
            raise StateError(f"the saved {self._all.name!r} makes no sense: {error}") from error
        if newer is not None and newer.number > head.number:
            head = newer
        self._base = head.position
        return saved, self._from_cell(head)

    def _load_head(self, record: Record) -> _Head | None:
        data = record.load() or b""
        if len(data) < _HEAD.size:
            return None
        cookie, number, *fields = _HEAD.unpack_from(data)
        return _Head(number, Position(*fields)) if cookie == self._cookie else None

    def _from_cell(self, head: _Head) -> Position:
        """Return the position in the cell if it is newer than a record's."""
        number, rest = _split(self._cells[POSITION_CELL], _NUMBER_BITS)
        parity, rest = _split(rest, _PARITY_BITS)
        size, replied = _split(rest, _SIZE_BITS)
        if number != head.number & (1 << _NUMBER_BITS) - 1 or parity == _NO_PARITY:
            return head.position
        return Position(parity, size, head.position.replied_bytes + replied)

    def _fill_cell(self, parity: int, size: int, replied: int) -> None:
        value = (replied << _SIZE_BITS | size) << _PARITY_BITS | parity
        number = self._number & (1 << _NUMBER_BITS) - 1
        self._cells[POSITION_CELL] = value << _NUMBER_BITS | number

    def save(self, position: Position, session: SavedT | None) -> None:
        """Save a position, and with it what has changed; None if nothing else has."""
        if session is None and self._base is not None:
            replied = position.replied_bytes - self._base.replied_bytes
            if not position.size_bytes >> _SIZE_BITS and not replied >> _REPLY_BITS:
                self._fill_cell(position.parity, position.size_bytes, replied)
                return
        self._save_record(position, session)

    def _save_record(self, position: Position, session: SavedT | None) -> None:
        self._number += 1
        head = _HEAD.pack(
            self._cookie,
            self._number,
            position.parity,
            position.size_bytes,
            position.replied_bytes,
        )
        if session is None:
            self._head.save(head, self._form)
        else:
            self._all.save(head + self._adapter.dump_json(session), self._form)
        self._base = replace(position)
        # From now on it belongs to this record, so that it never fits a later one by chance.
        self._fill_cell(_NO_PARITY, 0, 0)


def _split(value: int, bits: int) -> tuple[int, int]:
    """Return the lowest bits of a number, and the rest."""
    return value & (1 << bits) - 1, value >> bits

"""What a session leaves for a successor, and how it is kept up to date.

Everything that messages change is one record, which is replaced as a whole together with the
position in the stream of messages: so a message that was served and one that was not are the only
two moments there are. Most messages change nothing of it; for them only the position is saved, in
a small record of its own, and the newer of the two positions is the one that counts.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
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
    """The two records of one connection."""

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
        self._number = 0

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
        self._number = head.number
        return saved, head.position

    def _load_head(self, record: Record) -> _Head | None:
        data = record.load() or b""
        if len(data) < _HEAD.size:
            return None
        cookie, number, *fields = _HEAD.unpack_from(data)
        return _Head(number, Position(*fields)) if cookie == self._cookie else None

    def save(self, position: Position, session: SavedT | None) -> None:
        """Save a position, and with it what has changed; None if nothing else has."""
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

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ballast.state.file import StateFile
from ballast.transport.reader import Position
from ballast.transport.records import POSITION_CELL, SessionRecords
from ballast_protocol.errors import StateError


@dataclass
class Saved:
    features: int = 0
    rings: list[int] = field(default_factory=list)


@pytest.fixture
def state() -> Iterator[StateFile]:
    state = StateFile.create()
    yield state
    state.close()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def records(state: StateFile, sock: socket.socket, form: int = 1) -> SessionRecords[Saved]:
    return SessionRecords(state, sock, "vhost-user", Saved, form)


def test_of_a_new_connection_nothing_is_known(state: StateFile, sock: socket.socket) -> None:
    assert records(state, sock).load() is None


def test_the_newer_of_two_positions_counts(state: StateFile, sock: socket.socket) -> None:
    first = records(state, sock)
    first.save(Position(1, 20, 40), Saved(5))
    assert records(state, sock).load() == (Saved(5), Position(1, 20, 40))
    first.save(Position(2, 28, 80), None)
    first.save(Position(1, 12, 90), None)
    assert records(state, sock).load() == (Saved(5), Position(1, 12, 90))
    first.save(Position(2, 12, 91), Saved(6, [1]))
    assert records(state, sock).load() == (Saved(6, [1]), Position(2, 12, 91))


def test_a_successor_goes_on_counting(state: StateFile, sock: socket.socket) -> None:
    first = records(state, sock)
    first.save(Position(1, 20, 40), Saved())
    first.save(Position(2, 20, 80), None)
    second = records(state, sock)
    second.load()
    second.save(Position(1, 20, 120), None)
    assert records(state, sock).load() == (Saved(), Position(1, 20, 120))


def test_another_connection_s_state_is_void(state: StateFile, sock: socket.socket) -> None:
    records(state, sock).save(Position(1, 20, 40), Saved(5))
    records(state, sock).save(Position(2, 20, 40), None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert records(state, ours).load() is None
        records(state, ours).save(Position(2, 12, 0), Saved(7))
        assert records(state, ours).load() == (Saved(7), Position(2, 12, 0))


def test_what_is_not_understood_is_refused(state: StateFile, sock: socket.socket) -> None:
    records(state, sock, form=3).save(Position(), Saved())
    with pytest.raises(StateError, match="of format 3, and this Ballast knows up to 2"):
        records(state, sock, form=2).load()
    state.record("vhost-user").save((state.record("vhost-user").load() or b"") + b"}")
    with pytest.raises(StateError, match="makes no sense"):
        records(state, sock).load()


def test_long_messages_and_many_replies_have_a_record(
    state: StateFile, sock: socket.socket
) -> None:
    first, position = records(state, sock), Position(1, 12, 0)
    first.save(position, Saved(5))
    for number in range(400):
        position = Position(1 + number % 2, 100 + 5 * number, position.replied_bytes + 333)
        first.save(position, None)
        assert records(state, sock).load() == (Saved(5), position)


def test_a_cell_belongs_to_its_record_alone(state: StateFile, sock: socket.socket) -> None:
    """A kill between record and cell leaves the cell of the record before."""
    first = records(state, sock)
    for number in range(40):
        first.save(Position(2, 20, 50 * number), Saved(number))
        first.save(Position(1, 24, 50 * number + 7), None)
        stale = state.cells[POSITION_CELL]
        first.save(Position(2, 28, 50 * number + 9), Saved(number))
        state.cells[POSITION_CELL] = stale
        loaded = records(state, sock).load()
        assert loaded == (Saved(number), Position(2, 28, 50 * number + 9))
        first.save(Position(1, 24, 50 * number + 9), None)


def test_a_cell_of_an_earlier_connection_means_nothing(
    state: StateFile, sock: socket.socket
) -> None:
    earlier = records(state, sock)
    earlier.save(Position(2, 20, 40), Saved(1))
    earlier.save(Position(1, 24, 80), None)
    stale = state.cells[POSITION_CELL]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        records(state, ours).save(Position(1, 12, 0), Saved(2))
        state.cells[POSITION_CELL] = stale
        assert records(state, ours).load() == (Saved(2), Position(1, 12, 0))

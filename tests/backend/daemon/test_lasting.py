"""What a VM's next process finds: the books, the target, and a refusal of what it cannot read."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator

import pytest

from ballast.daemon.lasting import Lasting, check
from ballast.streams.fdstore import MemoryStore, VmStore
from ballast.transport.reader import Position
from ballast.transport.records import SessionRecords
from ballast_protocol.errors import StateError
from support.fds import none_left_open


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with none_left_open(), MemoryStore() as store:
        yield store
        while PARTS:
            close_rest(PARTS.pop())


PARTS: list[VmStore] = []


def share(store: MemoryStore) -> VmStore:
    """Return a VM's part of the store, as a process finds it."""
    PARTS.append(VmStore(store, "vm", store.take_all()))
    return PARTS[-1]


def close_rest(part: VmStore) -> None:
    for what in part.left:
        fd = part.take(what)
        assert fd is not None
        os.close(fd)


def killed(lasting: Lasting) -> None:
    """Free what a killed process no longer has, and tell the store nothing."""
    lasting.state.close()
    lasting.chunks.close()


def connect(store: MemoryStore) -> None:
    """Leave a connection, as if a VM were there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        store.put("vm/connection", ours.fileno())


def test_what_a_successor_would_find_can_be_looked_at(store: MemoryStore) -> None:
    connect(store)
    before = Lasting(share(store))
    left = store.take_all()
    check(left)
    os.pwrite(left["vm/state"], b"X" * 8, 0)
    with pytest.raises(StateError):
        check(left)
    # Of a VM whose QEMU has gone it does not matter.
    os.close(left.pop("vm/connection"))
    check(left)
    for fd in left.values():
        os.close(fd)
    before.close()


def test_a_session_of_a_later_version_is_refused(store: MemoryStore) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        store.put("vm/connection", ours.fileno())
        before = Lasting(share(store))
        records = SessionRecords(before.state, ours, "vfio-user", int, form=99)
        records.save(Position(), 1)
        left = store.take_all()
        with pytest.raises(StateError, match="format 99"):
            check(left)
        for fd in left.values():
            os.close(fd)
        before.close()


def test_a_successor_finds_records_and_books(store: MemoryStore) -> None:
    connect(store)
    before = Lasting(share(store))
    before.state.record("session").save(b"seven")
    before.state.cells[0] = 11
    before.chunks.make(2)[0] = 1
    killed(before)

    after = Lasting(share(store))
    assert after.has_connection
    assert after.state.record("session").load() == b"seven"
    assert after.state.cells[0] == 11
    assert tuple(after.chunks.numbers()) == (2,)
    after.close()
    assert set(store.held) == {"vm/connection"}


def test_without_a_vm_the_books_are_empty(store: MemoryStore) -> None:
    before = Lasting(share(store))
    before.state.cells[0] = 11
    before.chunks.make(2)[0] = 1
    killed(before)
    after = Lasting(share(store))
    assert not after.has_connection
    assert after.state.cells[0] == 0
    assert tuple(after.chunks.numbers()) == ()
    after.close()
    assert store.held == {}


@pytest.mark.parametrize("what", ["state", "ledger"])
def test_what_cannot_be_read_is_refused_if_a_vm_depends_on_it(
    store: MemoryStore, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    killed(Lasting(share(store)))
    other = os.memfd_create("other")
    store.put(f"vm/{what}", other)
    os.close(other)
    killed(Lasting(share(store)))
    assert "what an earlier process left is not used" in caplog.text

    connect(store)
    other = os.memfd_create("other")
    store.put(f"vm/{what}", other)
    os.close(other)
    with pytest.raises(StateError):
        Lasting(share(store))
    assert set(store.held) == {"vm/connection", "vm/state", "vm/ledger"}

from __future__ import annotations

import os

import pytest

from ballast.streams.fdstore import FdStore, MemoryStore, NoStore, VmStore, no_store
from ballast_protocol.errors import InternalError
from support.fds import none_left_open


def eventfd_of(count: int) -> int:
    return os.eventfd(count, os.EFD_NONBLOCK)


def count_of(fd: int) -> int:
    return int.from_bytes(os.read(fd, 8), "little")


def test_no_store_keeps_nothing() -> None:
    with none_left_open():
        store: FdStore = NoStore()
        fd = eventfd_of(1)
        store.put("vm/kick.0", fd)
        store.drop("vm/kick.0")
        assert store.take_all() == {}
        os.close(fd)


def test_a_successor_gets_what_was_put() -> None:
    with none_left_open(), MemoryStore() as memory:
        store: FdStore = memory
        fd = eventfd_of(7)
        store.put("vm/kick.0", fd)
        os.close(fd)
        taken = store.take_all()
        assert list(taken) == ["vm/kick.0"]
        assert count_of(taken["vm/kick.0"]) == 7
        os.close(taken["vm/kick.0"])


def test_the_store_still_holds_what_was_taken() -> None:
    with none_left_open(), MemoryStore() as store:
        fd = eventfd_of(0)
        store.put("vm/kick.0", fd)
        os.close(fd)
        for fd in store.take_all().values():
            os.close(fd)
        (again,) = store.take_all().values()
        os.close(again)


def test_a_second_put_replaces_the_first() -> None:
    with none_left_open(), MemoryStore() as store:
        for count in (1, 2):
            fd = eventfd_of(count)
            store.put("vm/kick.0", fd)
            os.close(fd)
        (taken,) = store.take_all().values()
        assert count_of(taken) == 2
        os.close(taken)


def test_what_is_dropped_is_closed() -> None:
    with none_left_open(), MemoryStore() as store:
        inside, outside = os.pipe()
        store.put("vm/connection", outside)
        os.close(outside)
        store.drop("vm/connection")
        store.drop("vm/connection")
        assert os.read(inside, 1) == b""
        os.close(inside)
        assert store.take_all() == {}


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "/a", "ä", "a" * 256, "a=b "])
@pytest.mark.parametrize("kind", [NoStore, MemoryStore])
def test_a_name_that_some_store_does_not_take(kind: type[NoStore | MemoryStore], name: str) -> None:
    with none_left_open(), pytest.raises(InternalError):
        kind().put(name, 0)


def test_a_vm_s_part_of_a_store() -> None:
    with none_left_open(), MemoryStore() as store:
        for name in ("web/listener", "web/kick.0", "web2/listener"):
            fd = eventfd_of(len(name))
            store.put(name, fd)
            os.close(fd)
        everything = store.take_all()
        part = VmStore(store, "web", everything)
        os.close(everything["web2/listener"])
        assert sorted(part.left) == ["kick.0", "listener"]
        listener = part.take("listener")
        assert listener is not None
        assert count_of(listener) == len("web/listener")
        assert part.take("listener") is None
        part.put("copy", listener)
        os.close(listener)
        part.drop("copy")
        part.drop_rest()
        assert sorted(store.held) == ["web/listener", "web2/listener"]


def test_a_vm_without_a_store() -> None:
    part = no_store()
    assert not part.left
    assert not part.accepts
    part.drop_rest()


def test_what_is_stored_anew_is_not_left_over() -> None:
    with none_left_open(), MemoryStore() as store:
        old, new = eventfd_of(1), eventfd_of(2)
        store.put("web/kick.0", old)
        part = VmStore(store, "web", store.take_all())
        part.put("kick.0", new)
        part.drop_rest()
        assert count_of(store.held["web/kick.0"]) == 2
        for fd in (old, new):
            os.close(fd)

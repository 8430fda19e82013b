"""systemd's file descriptor store, played by a fake that suppresses duplicates as systemd does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.keeper.notify import notify_service_manager
from ballast.keeper.systemd import SystemdStore, is_offered
from ballast_protocol.errors import InternalError
from support.fds import memory_file, none_left_open
from support.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with none_left_open():
        manager = ServiceManager(tmp_path / "notify")
        yield manager
        manager.close()


@pytest.fixture
def store(manager: ServiceManager) -> Iterator[SystemdStore]:
    store = SystemdStore(manager.environment)
    yield store
    store.close()


def put(store: SystemdStore, name: str, fd: int) -> None:
    store.put(name, fd)
    os.close(fd)


def successor(manager: ServiceManager, store: SystemdStore) -> SystemdStore:
    """Return the store of a process that inherited what is held, wherever it happens to be."""
    store.close()
    manager.read()
    names = manager.names
    heir = SystemdStore(manager.environment)
    fds = [os.dup(fd) for _, fd in manager.held]
    heir._find(names, fds)
    return heir


def test_what_is_stored_and_let_go(manager: ServiceManager, store: SystemdStore) -> None:
    put(store, "vm/kick.0", os.eventfd(1))
    put(store, "vm/kick.1", os.eventfd(2))
    put(store, "vm/kick.0", os.eventfd(3))
    store.drop("vm/kick.1")
    store.drop("vm/kick.1")
    store.ready()
    manager.read()
    assert manager.names == ["vm/kick.0@3"]
    assert os.read(manager.held[0][1], 8)[0] == 3
    assert manager.states == ["READY=1"]


def test_a_successor_gets_it_and_goes_on(manager: ServiceManager, store: SystemdStore) -> None:
    put(store, "vm/kick.0", os.eventfd(1))
    put(store, "vm/kick.1", os.eventfd(2))
    heir = successor(manager, store)
    left = heir.take_all()
    assert sorted(left) == ["vm/kick.0", "vm/kick.1"]
    # It stores again what it has taken over, which systemd would suppress.
    heir.put("vm/kick.0", left["vm/kick.0"])
    put(heir, "vm/kick.1", os.eventfd(5))
    manager.read()
    assert manager.names == ["vm/kick.0@1", "vm/kick.1@3"]
    for fd in left.values():
        os.close(fd)
    heir.drop("vm/kick.0")
    manager.read()
    assert manager.names == ["vm/kick.1@3"]
    heir.close()


def test_an_end_in_the_middle_of_a_replacement(
    manager: ServiceManager, store: SystemdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "vm/kick.0", os.eventfd(1))
    monkeypatch.setattr(store, "_remove", lambda name, number: None)
    put(store, "vm/kick.0", os.eventfd(2))
    manager.read()
    assert manager.names == ["vm/kick.0@1", "vm/kick.0@2"]
    heir = successor(manager, store)
    left = heir.take_all()
    assert os.read(left["vm/kick.0"], 8)[0] == 2
    os.close(left["vm/kick.0"])
    manager.read()
    assert manager.names == ["vm/kick.0@2"]
    heir.close()


def test_one_file_behind_two_regions_of_memory(
    manager: ServiceManager, store: SystemdStore
) -> None:
    fd = memory_file(1)
    store.put("vm/memory.0", fd)
    store.put("vm/memory.1", fd)
    os.close(fd)
    manager.read()
    assert manager.names == ["vm/memory.0@1", "vm/memory.1@2"]


def test_a_store_that_is_too_small_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ServiceManager(tmp_path / "small", room=2)
    store = SystemdStore(manager.environment)
    for number in range(3):
        put(store, f"vm/kick.{number}", os.eventfd(0))
    manager.read()
    assert len(manager.held) == 2
    assert "vm/kick.2 cannot be held by systemd" in caplog.text
    store.close()
    manager.close()


def test_names_that_do_not_fit(store: SystemdStore) -> None:
    with pytest.raises(InternalError):
        store.put("a:b", 0)


def test_what_others_have_passed_is_left_alone(manager: ServiceManager) -> None:
    heir = SystemdStore(manager.environment)
    heir._find(["ballast.socket", "stored"], [1000, 1001])
    assert heir.take_all() == {}
    heir.close()


PROGRAM = """
import os, sys
from ballast.keeper.systemd import SystemdStore
store = SystemdStore(os.environ)
left = store.take_all()
assert not set(os.environ) & {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
for name, fd in left.items():
    assert not os.get_inheritable(fd)
    print(name, os.read(fd, 8)[0])
fd = os.eventfd(len(left) + 1)
store.put(f"vm/kick.{len(left)}", fd)
"""


def test_a_process_that_is_started_again(manager: ServiceManager) -> None:
    command = [sys.executable, "-c", PROGRAM]
    for _ in range(2):
        process = manager.start(command)
        assert process.wait(60) == 0
        manager.read()
    # Twice, since reading an eventfd empties it.
    assert manager.names == ["vm/kick.0@1", "vm/kick.1@2"]


def test_variables_for_another_process(manager: ServiceManager) -> None:
    environment = {**manager.environment, "LISTEN_PID": "1", "LISTEN_FDS": "9"}
    store = SystemdStore(environment)
    assert store.take_all() == {}
    assert "LISTEN_FDS" not in environment
    store.close()


@pytest.mark.parametrize(
    ("environment", "offered"),
    [
        ({"NOTIFY_SOCKET": "/x", "FDSTORE": "64"}, True),
        ({"NOTIFY_SOCKET": "/x", "FDSTORE": "0"}, False),
        ({"NOTIFY_SOCKET": "/x"}, False),
        ({"FDSTORE": "64"}, False),
    ],
)
def test_whether_systemd_offers_itself(environment: dict[str, str], offered: bool) -> None:
    assert is_offered(environment) is offered


def test_a_keeper_tells_its_service_manager(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify_service_manager("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environment["NOTIFY_SOCKET"])
    notify_service_manager("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    notify_service_manager("READY=1")
    manager.read()
    assert manager.states == ["READY=1"]

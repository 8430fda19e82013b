from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ballast.streams.fdstore import MemoryStore, VmStore
from ballast.transport.server import DeviceServer, Session
from ballast_protocol.errors import OperatorError
from support.backend import until
from support.fds import none_left_open


class FakeSession:
    """A connection that only counts what it is told."""

    problem = ""

    def __init__(self, sock: socket.socket, ended: Callable[[str], None]) -> None:
        self.pid: int | None = os.getpid()
        self.ended = ended
        self.notices = 0
        self._socket = sock

    def notify_config(self) -> None:
        self.notices += 1

    def request_statistics(self) -> bool:
        return True

    def refresh(self) -> None:
        self.notices += 100

    def status(self) -> dict[str, object]:
        return {"notices": self.notices}

    def close(self) -> None:
        self._socket.close()


class Server(DeviceServer):
    """Serves `FakeSession`s, unless it has no descriptors left."""

    protocol = "fake"
    is_exhausted = False

    def _open(self, sock: socket.socket, ended: Callable[[str], None]) -> Session:
        if self.is_exhausted:
            raise OSError(errno.EMFILE, "too many open files")
        return FakeSession(sock, ended)


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(5)
    return client


async def test_a_connection_comes_and_goes(tmp_path: Path) -> None:
    changes: list[int] = []
    with none_left_open():
        server = Server(path=tmp_path / "s", changed=lambda: changes.append(1))
        await server.start()
        assert not server.request_statistics()
        server.notify_config()
        server.refresh()
        with connected(tmp_path / "s"):
            await until(lambda: server.session is not None)
            session = server.session
            assert isinstance(session, FakeSession)
            server.notify_config()
            server.refresh()
            assert server.request_statistics()
            assert server.status() == {
                "transport": "fake",
                "socket": str(tmp_path / "s"),
                "connection": {"notices": 101},
                "refused-connections": 0,
            }
            session.close()
            session.ended("because")
        assert server.session is None
        assert len(changes) == 2
        await server.close()
        assert not (tmp_path / "s").exists()


async def test_a_session_that_cannot_be_made_costs_that_connection_only(tmp_path: Path) -> None:
    with none_left_open():
        server = Server(path=tmp_path / "s")
        await server.start()
        server.is_exhausted = True
        with connected(tmp_path / "s") as client:
            client.setblocking(False)
            await until(lambda: ended(client))
        assert server.session is None
        server.is_exhausted = False
        with connected(tmp_path / "s"):
            await until(lambda: server.session is not None)
        await server.close()


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


async def refused(path: Path) -> None:
    """Connect, and wait to be turned away."""
    with connected(path) as client:
        client.setblocking(False)
        await until(lambda: ended(client))


async def test_an_inherited_connection_is_served_at_once() -> None:
    with none_left_open():
        ours, theirs = socket.socketpair()
        with theirs:
            server = Server(fd=ours.detach())
            await server.start()
            assert server.session is not None
            await server.close()


async def test_an_inherited_listener_is_listened_at(tmp_path: Path) -> None:
    with none_left_open():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        server = Server(fd=listener.detach())
        await server.start()
        with connected(tmp_path / "s"):
            await until(lambda: server.session is not None)
        await server.close()


async def test_what_was_inherited_has_to_be_a_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OperatorError, match="not a socket"):
        await Server(fd=file.fileno()).start()


# What outlives the process


async def test_listener_and_connection_are_stored_as_long_as_they_last(tmp_path: Path) -> None:
    with none_left_open(), MemoryStore() as store:
        server = Server(path=tmp_path / "s", store=VmStore(store, "vm", {}))
        await server.start()
        assert set(store.held) == {"vm/listener"}
        with connected(tmp_path / "s"):
            await until(lambda: server.session is not None)
            assert set(store.held) == {"vm/listener", "vm/connection"}
            session = server.session
            assert isinstance(session, FakeSession)
            session.close()
            session.ended("")
        assert set(store.held) == {"vm/listener"}
        await server.close()
        assert not store.held


async def test_a_successor_serves_the_same_connection(tmp_path: Path) -> None:
    with none_left_open(), MemoryStore() as store:
        first = Server(path=tmp_path / "s", store=VmStore(store, "vm", {}))
        await first.start()
        with connected(tmp_path / "s") as client:
            await until(lambda: first.session is not None)
            left = VmStore(store, "vm", store.take_all())
            second = Server(path=tmp_path / "s", store=left)
            await second.start()
            assert second.session is not None
            # What the first process had goes when it dies; the connection does not.
            assert isinstance(first.session, FakeSession)
            first.session.close()
            client.setblocking(False)
            assert not ended(client)
            await refused(tmp_path / "s")
            await second.close()
            assert ended(client)
        first.session = None
        await first.close()


class AcceptingStore(MemoryStore):
    """A store whose owner accepts connections."""

    accepts = True


async def test_a_listener_is_left_to_whoever_stores_connections(tmp_path: Path) -> None:
    with none_left_open(), AcceptingStore() as store:
        server = Server(path=tmp_path / "s", store=VmStore(store, "vm", {}))
        await server.start()
        with (
            connected(tmp_path / "s"),
            socket.socket(fileno=os.dup(store.held["vm/listener"])) as s,
        ):
            for _ in range(3):
                await asyncio.sleep(0)
            assert server.session is None
            server.offer(s.accept()[0])
            assert server.session is not None
            # Beside a connection that is served, others are refused here.
            await refused(tmp_path / "s")
            ours, theirs = socket.socketpair()
            server.offer(ours)
            assert theirs.recv(1) == b""
            theirs.close()
        await server.close()

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ballast.streams.fds import FdSet
from ballast.streams.unix import (
    MAX_FDS,
    MAX_PENDING_BYTES,
    MessageSocket,
    clear_stale,
    listen,
    peer_pid,
)
from ballast_protocol.errors import MalformedError, OperatorError, PeerError
from support.fds import none_left_open

SMALL_BUFFER = 4096
"""What the kernel is asked to hold of our writes; it holds a little more."""


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    with none_left_open():
        yield


class Ours:
    """Our end of a pair of sockets, and what its callbacks were told."""

    def __init__(self, sock: socket.socket) -> None:
        self.readable = asyncio.Event()
        self.failures: list[PeerError] = []
        self.failed = asyncio.Event()
        self.socket = MessageSocket(sock, self.readable.set, self._fail)

    def _fail(self, error: PeerError) -> None:
        self.failures.append(error)
        self.failed.set()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Ours, socket.socket]]:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    ours = Ours(one)
    with other:
        yield ours, other
    ours.socket.close()


async def test_descriptors_stay_with_the_message_that_they_came_with() -> None:
    async with pair() as (ours, peer):
        fd = os.eventfd(0)
        peer.send(b"first")
        socket.send_fds(peer, [b"second"], [fd])
        peer.send(b"third")
        with FdSet() as fds:
            assert ours.socket.receive(5, fds) == b"first"
            assert len(fds) == 0
            assert ours.socket.receive(3, fds) == b"sec"
            assert len(fds) == 1
            assert ours.socket.receive(3, fds) == b"ond"
            assert len(fds) == 1
            os.eventfd_write(fds.peek(), 7)
            assert os.eventfd_read(fd) == 7
            assert not os.get_inheritable(fds.peek())
        os.close(fd)


async def test_nothing_there_is_not_the_end() -> None:
    async with pair() as (ours, peer):
        assert not ours.socket.has_input()
        assert ours.socket.receive(10, FdSet()) is None
        peer.shutdown(socket.SHUT_WR)
        await ours.readable.wait()
        assert ours.socket.has_input()
        assert ours.socket.receive(10, FdSet()) == b""


async def test_looking_takes_neither_bytes_nor_descriptors() -> None:
    async with pair() as (ours, peer):
        fd = os.eventfd(0)
        socket.send_fds(peer, [b"x"], [fd])
        os.close(fd)
        assert ours.socket.has_input()
        with FdSet() as fds:
            assert ours.socket.receive(1, fds) == b"x"
            assert len(fds) == 1


@pytest.mark.parametrize("together", [True, False])
async def test_there_is_a_most_of_descriptors_for_one_message(together: bool) -> None:
    async with pair() as (ours, peer):
        fd = os.eventfd(0)
        if together:
            socket.send_fds(peer, [b"xy"], [fd] * (MAX_FDS + 1))
        else:
            socket.send_fds(peer, [b"x"], [fd] * MAX_FDS)
            socket.send_fds(peer, [b"y"], [fd])
        os.close(fd)
        with FdSet() as fds:
            if not together:
                assert ours.socket.receive(1, fds) == b"x"
            with pytest.raises(MalformedError, match="more than 16"):
                ours.socket.receive(1, fds)


async def test_a_connection_that_breaks_is_a_peer_error() -> None:
    async with pair() as (ours, peer):
        ours.socket.send(b"never read")
        peer.close()  # with bytes unread: the next read here is a reset
        with pytest.raises(PeerError, match="reading failed"):
            ours.socket.receive(1, FdSet())
        with pytest.raises(PeerError, match="writing failed"):
            ours.socket.send(b"x")


async def test_replies_wait_for_a_slow_reader_and_arrive_in_order() -> None:
    async with pair() as (ours, peer):
        peer.setblocking(False)
        data = b"".join(number.to_bytes(4, "big") for number in range(1 << 14))
        for start in range(0, len(data), 1 << 10):
            ours.socket.send(data[start : start + (1 << 10)])
        received = b""
        while len(received) < len(data):
            received += await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
        assert received == data
        ours.socket.send(b"")
        assert ours.socket.unread_by_peer() == 0


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async with pair() as (ours, _):
        ours.socket.send(bytes(SMALL_BUFFER + MAX_PENDING_BYTES // 2))
        while not ours.socket.outbox.pending:
            ours.socket.send(bytes(SMALL_BUFFER))
        with pytest.raises(PeerError, match="left unread"):
            ours.socket.send(bytes(MAX_PENDING_BYTES))


async def test_a_delayed_write_tells_when_the_peer_is_gone() -> None:
    async with pair() as (ours, peer):
        while not ours.socket.outbox.pending:
            ours.socket.send(bytes(1 << 14))
        peer.close()
        await ours.failed.wait()
        assert len(ours.failures) == 1


async def test_unread_bytes_count_until_the_peer_takes_them() -> None:
    async with pair() as (ours, peer):
        assert ours.socket.unread_by_peer() == 0
        ours.socket.send(b"x")
        assert ours.socket.unread_by_peer() > 0
        peer.recv(1)
        assert ours.socket.unread_by_peer() == 0


async def test_the_peer_s_process_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_pid(one) == os.getpid()
    with socket.socket(socket.AF_INET) as plain:
        assert peer_pid(plain) is None


# Listening


def test_a_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_dead_socket_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen(path).close()
    assert path.is_socket()
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_living_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path) as first:
        with pytest.raises(OperatorError, match="another process is listening") as caught:
            listen(path)
        assert caught.value.hint
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.accept()[0].close()


def test_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OperatorError, match="not a socket"):
        listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_a_path_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError, match="cannot listen at") as caught:
        listen(tmp_path / name)
    assert "108" in caught.value.hint


def test_nothing_to_clear_is_fine(tmp_path: Path) -> None:
    clear_stale(tmp_path / "s")


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="cannot look at"):
        clear_stale(tmp_path / "file" / "s")


# Looking without taking


async def test_what_is_looked_at_stays_with_its_descriptors() -> None:
    async with pair() as (ours, peer):
        fd = os.eventfd(0)
        peer.send(b"one")
        socket.send_fds(peer, [b"two"], [fd])
        os.close(fd)
        for _ in range(2):
            with FdSet() as fds:
                assert ours.socket.peek(100, fds) == b"onetwo"
                assert len(fds) == 1
        with FdSet() as fds:
            assert ours.socket.peek(100, fds, 4) == b"wo"
        ours.socket.consume(3)
        with FdSet() as fds:
            assert ours.socket.peek(100, fds) == b"two"
            assert ours.socket.receive(100, fds) == b"two"
            assert len(fds) == 2


async def test_a_mark_lasts_until_something_is_consumed() -> None:
    async with pair() as (ours, peer):
        assert ours.socket.marked < 0
        peer.send(b"a message" * 2)
        with FdSet() as fds:
            assert ours.socket.peek(9, fds) == b"a message"
            ours.socket.mark(2)
            assert ours.socket.marked == 2
            ours.socket.consume(9)
            assert ours.socket.marked == 0
            assert ours.socket.peek(100, fds) == b"a message"
            ours.socket.rewind()
            assert ours.socket.marked == 0
            assert ours.socket.peek(100, fds) == b"a message"


async def test_what_is_gone_cannot_be_consumed() -> None:
    async with pair() as (ours, peer):
        peer.send(b"xy")
        peer.close()
        assert ours.socket.is_ended()
        with pytest.raises(PeerError, match="are gone"):
            ours.socket.consume(3)

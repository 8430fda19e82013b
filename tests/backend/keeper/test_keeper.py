"""What is held, for whom, and until when."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.keeper.channel import pair, receive
from ballast.keeper.keeper import Keeper
from ballast.keeper.messages import MAX_FDS, Message, encode
from ballast.keeper.worker import Worker
from support.fds import none_left_open
from support.keeping import connected, keeping, turn_until


class Peer:
    """The worker's end of a channel to a keeper."""

    def __init__(self, keeper: Keeper) -> None:
        ours, self.sock = pair()
        self.ends: list[str] = []
        self._keeper = keeper
        self.worker = Worker(
            keeper.loop,
            ours,
            heard=self._heard,
            ended=lambda worker, how: self.ends.append(how),
        )
        keeper.hand_over(self.worker, encode(GO=1))

    def _heard(self, worker: Worker, message: Message, fds: list[int]) -> None:
        self._keeper.heard(worker, message, fds)

    def send(self, message: bytes, *fds: int) -> None:
        socket.send_fds(self.sock, [message], fds)

    def put(self, name: str, fd: int) -> None:
        self.send(encode(FDSTORE=1, FDNAME=name), fd)
        os.close(fd)

    def drop(self, name: str) -> None:
        self.send(encode(FDSTOREREMOVE=1, FDNAME=name))

    def next(self) -> tuple[Message, list[int]]:
        found: list[tuple[Message, list[int]]] = []

        def look() -> bool:
            received = receive(self.sock)
            found.extend([received] if received else [])
            return bool(found)

        turn_until(self._keeper.loop, look)
        return found[0]

    def until_names(self, *names: str) -> None:
        turn_until(self._keeper.loop, lambda: sorted(self._keeper.vault.names()) == sorted(names))

    def die(self) -> None:
        self.sock.close()
        turn_until(self._keeper.loop, lambda: bool(self.ends))
        self._keeper.lost()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with none_left_open(), keeping(limit=300) as keeper:
        yield keeper


@pytest.fixture
def peer(keeper: Keeper) -> Iterator[Peer]:
    peer = Peer(keeper)
    assert peer.next() == ({"GO": "1"}, [])
    yield peer
    peer.worker.close()
    peer.sock.close()


def listener(path: Path) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock.detach()


def test_descriptors_are_held_replaced_and_let_go(keeper: Keeper, peer: Peer) -> None:
    peer.put("vm/kick.0", os.eventfd(1))
    peer.put("vm/kick.1", os.eventfd(2))
    peer.put("vm/kick.0", os.eventfd(3))
    peer.until_names("vm/kick.0", "vm/kick.1")
    assert os.read(keeper.vault["vm/kick.0"], 8)[0] == 3
    peer.drop("vm/kick.0")
    peer.drop("vm/kick.7")
    peer.until_names("vm/kick.1")


def test_everything_is_handed_over_however_much_it_is(keeper: Keeper, peer: Peer) -> None:
    count = 2 * MAX_FDS + 1
    for number in range(count):
        keeper.put(f"vm/memory.{number}", os.eventfd(number + 1))
    heir = Peer(keeper)
    found: dict[str, int] = {}
    while "GO" not in (message := heir.next())[0]:
        found.update(zip(message[0]["FDNAMES"].split(":"), message[1], strict=True))
    assert list(found) == [f"vm/memory.{number}" for number in range(count)]
    for number, fd in enumerate(found.values()):
        assert int.from_bytes(os.read(fd, 8), "little") == number + 1
        os.close(fd)
    heir.worker.close()
    heir.sock.close()


def test_there_is_a_bound(keeper: Keeper, peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(300):
        keeper.put(f"vm/memory.{number}", os.eventfd(0))
    peer.put("vm/one-more", os.eventfd(0))
    assert peer.next() == ({"REJECTED": "vm/one-more"}, [])
    peer.put("vm/memory.7", os.eventfd(7))
    turn_until(keeper.loop, lambda: readable(keeper.vault["vm/memory.7"]))
    assert "vm/one-more cannot be held" in capfd.readouterr().err


def readable(fd: int) -> bool:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 8)[0] == 7
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (encode(FDSTORE=1, FDNAME="a:b"), 1),
        (encode(FDSTORE=1), 1),
        (encode(FDSTORE=1, FDNAME="vm/a"), 0),
        (encode(FDSTORE=1, FDNAME="vm/a"), 2),
        (encode(WHAT=1), 3),
        (b"\0", 1),
    ],
)
def test_what_makes_no_sense_is_closed(
    keeper: Keeper, peer: Peer, message: bytes, count: int
) -> None:
    fds = [os.eventfd(0) for _ in range(count)]
    peer.send(message, *fds)
    for fd in fds:
        os.close(fd)
    peer.put("vm/after", os.eventfd(0))
    peer.until_names("vm/after")


def test_who_is_not_the_worker_has_no_say(keeper: Keeper, peer: Peer) -> None:
    peer.put("vm/kick.0", os.eventfd(0))
    peer.until_names("vm/kick.0")
    heir = Peer(keeper)
    peer.drop("vm/kick.0")
    heir.put("vm/kick.1", os.eventfd(0))
    heir.until_names("vm/kick.0", "vm/kick.1")
    peer.die()
    heir.worker.close()
    heir.sock.close()


def test_last_words_are_heard_before_the_end(keeper: Keeper, peer: Peer) -> None:
    peer.put("vm/kick.0", os.eventfd(0))
    peer.send(encode(STATUS="no more"))
    peer.die()
    assert keeper.vault.names() == ["vm/kick.0"]
    assert peer.ends == ["hung up: no more"]


# QEMU


def test_a_connection_is_held_before_anybody_serves_it(
    keeper: Keeper, peer: Peer, tmp_path: Path
) -> None:
    peer.put("vm/listener", listener(tmp_path / "s"))
    peer.until_names("vm/listener")
    with connected(tmp_path / "s") as qemu, connected(tmp_path / "s") as second:
        message, fds = peer.next()
        assert message == {"CONNECTION": "1", "FDNAME": "vm/connection"}
        peer.until_names("vm/listener", "vm/connection")
        # Another one waits, as long as this one is held: it is the worker's to refuse.
        qemu.send(b"x")
        assert os.read(fds[0], 1) == b"x"
        os.close(fds[0])
        second.send(b"y")
        peer.drop("vm/connection")
        _, fds = peer.next()
        assert os.read(fds[0], 1) == b"y"
        os.close(fds[0])


def test_a_connection_that_comes_while_no_worker_is_there_waits_for_the_next(
    keeper: Keeper, peer: Peer, tmp_path: Path
) -> None:
    peer.put("vm/listener", listener(tmp_path / "s"))
    peer.until_names("vm/listener")
    peer.die()
    with connected(tmp_path / "s"):
        turn_until(keeper.loop, lambda: "vm/connection" in keeper.vault)
        heir = Peer(keeper)
        message, fds = heir.next()
        assert message == {"FDNAMES": "vm/listener:vm/connection"}
        for fd in fds:
            os.close(fd)
        heir.worker.close()
        heir.sock.close()


def test_memory_of_a_qemu_that_leaves_meanwhile_is_let_go(
    keeper: Keeper, peer: Peer, tmp_path: Path
) -> None:
    ours, qemu = socket.socketpair()
    other, other_qemu = socket.socketpair()
    peer.put("vm/connection", ours.detach())
    peer.put("vm2/connection", other.detach())
    for name in ("vm/listener", "vm/memory.0", "vm/kick.0", "vm/wishes", "vm/lock", "vm2/memory.0"):
        peer.put(name, os.eventfd(0) if "listener" not in name else listener(tmp_path / "s"))
    peer.die()
    qemu.close()
    turn_until(keeper.loop, lambda: "vm/connection" not in keeper.vault)
    names = ["vm/listener", "vm/lock", "vm/wishes", "vm2/connection", "vm2/memory.0"]
    assert sorted(keeper.vault.names()) == names
    other_qemu.close()


def test_while_a_worker_is_there_it_decides(keeper: Keeper, peer: Peer) -> None:
    ours, qemu = socket.socketpair()
    peer.put("vm/connection", ours.detach())
    peer.until_names("vm/connection")
    peer.die()
    heir = Peer(keeper)
    qemu.close()
    message, fds = heir.next()
    assert message == {"FDNAMES": "vm/connection"}
    os.close(fds[0])
    assert heir.next()[0] == {"GO": "1"}
    assert "vm/connection" in keeper.vault
    heir.drop("vm/connection")
    heir.until_names()
    heir.worker.close()
    heir.sock.close()

"""A keeper that listens, and workers that come and go."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ballast.keeper import service
from ballast.keeper.channel import ChannelClosedError, receive
from ballast.keeper.client import DismissedError, KeeperStore, Takeover, connect
from ballast.keeper.keeper import Keeper
from ballast.keeper.messages import Message
from ballast.keeper.service import Service
from ballast_protocol.errors import OperatorError
from support.fds import none_left_open
from support.keeping import keeping, turn_until


class Place:
    """A keeper's socket, and who connects to it."""

    def __init__(self, keeper: Keeper, path: Path) -> None:
        self.keeper, self.path = keeper, path
        self.status: int | None = None
        self.service = Service(keeper, path)
        self.service._watch()

    def until(self, condition: Callable[[], bool]) -> None:
        turn_until(self.keeper.loop, condition)

    def attach(self) -> tuple[KeeperStore, Takeover]:
        """Attach as a worker that has been given the order to serve."""
        store = KeeperStore(connect(str(self.path)))
        self.until(lambda: bool(self.keeper.active))
        return store, store.wait(lambda left: None)

    def end_of(self, store: KeeperStore) -> None:
        store.close()
        self.until(lambda: self.keeper.active is None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with none_left_open(), keeping() as keeper:
        place = Place(keeper, tmp_path / "keeper.sock")
        yield place
        if keeper.active is not None:
            keeper.active.close()
        place.service.stop()


def test_the_next_worker_gets_everything(place: Place) -> None:
    store, takeover = place.attach()
    assert takeover == Takeover("start")
    fd = os.eventfd(5)
    store.put("vm/kick.0", fd)
    os.close(fd)
    place.until(lambda: len(place.keeper.vault) == 1)
    place.end_of(store)
    store, takeover = place.attach()
    assert (takeover.kind, takeover.restarts) == ("restart", 1)
    left = store.take_all()
    assert os.read(left["vm/kick.0"], 8)[0] == 5
    os.close(left["vm/kick.0"])
    store.drop("vm/kick.0")
    place.until(lambda: len(place.keeper.vault) == 0)
    place.end_of(store)


def test_a_second_worker_beside_a_living_one_is_refused(place: Place) -> None:
    store, _ = place.attach()
    second = KeeperStore(connect(str(place.path)))
    place.keeper.loop.turn()
    place.keeper.loop.turn()
    with pytest.raises(OperatorError, match=f"worker {os.getpid()} is at work") as caught:
        second.wait(lambda left: None)
    assert caught.value.hint
    second.close()
    assert place.keeper.active is not None
    place.end_of(store)


def test_who_does_not_say_what_it_wants_is_sent_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STRANGER_SECONDS", 0.05)
    strangers = [connect(str(place.path), serves_already=True) for _ in range(10)]
    place.until(lambda: all(is_hung_up(each) for each in strangers))
    for each in strangers:
        each.close()
    store, _ = place.attach()
    place.end_of(store)


def is_hung_up(sock: socket.socket) -> bool:
    try:
        return receive(sock) is not None
    except ChannelClosedError:
        return True


def test_a_worker_whose_keeper_has_died_brings_everything_to_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with none_left_open():
        with keeping() as keeper:
            first = Place(keeper, tmp_path / "keeper.sock")
            store, _ = first.attach()
            fd = os.eventfd(3)
            store.put("vm/kick.0", fd)
            os.close(fd)
            first.until(lambda: len(keeper.vault) == 1)
            assert keeper.active is not None
            keeper.active.close()
            first.service.stop()
        assert store.read() is None
        assert store.is_lost
        store.drop("vm/unknown")
        with keeping() as keeper:
            second = Place(keeper, tmp_path / "keeper.sock")
            store.move_to(connect(str(second.path), serves_already=True), os.getpid())
            assert not store.is_lost
            second.until(lambda: keeper.vault.names() == ["vm/kick.0"])
            assert os.read(keeper.vault["vm/kick.0"], 8)[0] == 3
            second.end_of(store)
            # Now it holds what another worker left: one that brings its own is not the next.
            late = KeeperStore(connect(str(second.path)))
            late.move_to(connect(str(second.path), serves_already=True), os.getpid())
            found: list[Message] = []

            def refused() -> bool:
                received = late.read()
                found.extend([received[0]] if received else [])
                return any("REFUSED" in message for message in found)

            second.until(refused)
            late.close()
            second.service.stop()


def test_a_place_that_is_taken(place: Place, tmp_path: Path) -> None:
    with keeping() as keeper:
        with pytest.raises(OperatorError, match="cannot listen") as caught:
            Service(keeper, place.path)
        assert caught.value.hint
        (tmp_path / "file").touch()
        with pytest.raises(OperatorError, match="cannot listen"):
            Service(keeper, tmp_path / "file")


def test_a_place_that_a_dead_keeper_has_left(tmp_path: Path) -> None:
    with none_left_open(), keeping() as keeper:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as dead:
            dead.bind(str(tmp_path / "keeper.sock"))
        place = Place(keeper, tmp_path / "keeper.sock")
        place.service.stop()
        assert not place.path.exists()


def test_a_spare_whose_keeper_ends_is_dismissed(place: Place) -> None:
    store = KeeperStore(connect(str(place.path), serves_already=True))
    place.until(lambda: bool(place.service._strangers))
    for stranger in place.service._strangers:
        stranger.close()
    place.service._strangers.clear()
    with pytest.raises(DismissedError):
        store.wait(lambda left: None)
    store.close()

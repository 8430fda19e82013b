from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from ballast.qmp import server as server_module
from ballast.qmp.server import QmpServer
from ballast_protocol.errors import OperatorError
from support.balloon_control import MIB, FakeBalloonControl
from support.qmp_peer import VERSION, qmp_client, raw_peer, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def replace_by_a_file(path: Path) -> None:
    path.unlink()
    path.touch()


@pytest.mark.usefixtures("open_umask")
async def test_the_socket_is_for_its_owner_alone(path: Path) -> None:
    async with serving(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("name", ["missing/qmp.sock", "x" * 108, "."])
async def test_a_path_that_cannot_be_served(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError, match="cannot serve QMP at"):
        await QmpServer(FakeBalloonControl(), tmp_path / name, VERSION).start()


async def test_a_path_that_is_taken_is_left_alone(path: Path) -> None:
    async with serving(path):
        with pytest.raises(OperatorError, match="Address already in use"):
            await QmpServer(FakeBalloonControl(), path, VERSION).start()
        async with qmp_client(path) as client:
            assert await client.execute("query-name") == {"name": "vm1"}


async def test_closing_leaves_the_socket_of_a_successor(path: Path) -> None:
    async with serving(path):
        replace_by_a_file(path)
    assert os.listdir(path.parent) == [path.name]


async def test_closing_disconnects_and_can_be_repeated(path: Path) -> None:
    async with serving(path) as server, raw_peer(path) as peer:
        await peer.negotiate()
        await server.close()
        assert await peer.receive() is None
        server.emit("BALLOON_CHANGE", {"actual": 1})


async def test_a_real_client_converses(path: Path) -> None:
    vm = FakeBalloonControl()
    async with serving(path, vm), qmp_client(path) as client:
        assert client.greeting is not None
        assert client.greeting.QMP.version["package"] == "ballast 1.2.3"
        assert await client.execute("balloon", {"value": 512 * MIB}) == {}
        assert await client.execute("query-balloon") == {"actual": 512 * MIB}
        with pytest.raises(ExecuteError, match="Parameter 'value' is missing") as caught:
            await client.execute("balloon")
        assert caught.value.error_class == "GenericError"
        with pytest.raises(ExecuteError, match="has not been found") as caught:
            await client.execute("stop")
        assert caught.value.error_class == "CommandNotFound"


async def test_several_clients_at_once(path: Path) -> None:
    async with (
        serving(path) as server,
        qmp_client(path) as one,
        qmp_client(path) as two,
        qmp_client(path) as three,
    ):
        clients = (one, two, three)
        listeners = [EventListener("BALLOON_CHANGE") for _ in clients]
        for client, listener in zip(clients, listeners, strict=True):
            client.register_listener(listener)
        await asyncio.gather(*(client.execute("query-name") for client in clients * 10))
        server.emit("BALLOON_CHANGE", {"actual": 5})
        for listener in listeners:
            event = await listener.get()
            assert event["data"] == {"actual": 5}
            assert event["timestamp"] == {"seconds": 1_700_000_000, "microseconds": 5}


async def test_fifty_clients_at_once(path: Path) -> None:
    vm = FakeBalloonControl()
    async with serving(path, vm) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(qmp_client(path)) for _ in range(50)]
        listeners = [stack.enter_context(client.listener("BALLOON_CHANGE")) for client in clients]

        async def converse(number: int, client: QMPClient) -> None:
            for _ in range(5):
                size = (number + 1) * MIB
                assert await client.execute("balloon", {"value": size}) == {}
                assert await client.execute("query-name") == {"name": "vm1"}
                with pytest.raises(ExecuteError):
                    await client.execute("balloon", {"value": "much"})

        await asyncio.gather(*(converse(number, each) for number, each in enumerate(clients)))
        assert (vm.target_bytes or 0) % MIB == 0
        server.emit("BALLOON_CHANGE", {"actual": 5})
        for listener in listeners:
            assert (await listener.get())["data"] == {"actual": 5}
        status = server.status()
        assert (status["clients"], status["commands"]) == (50, 50 * 5 * 3)


async def test_balloon_changes_are_paced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "EVENT_PERIODS_SECONDS", {"BALLOON_CHANGE": 0.1})
    async with serving(path) as server, raw_peer(path) as peer:
        await peer.negotiate()
        for actual in range(1, 6):
            server.emit("BALLOON_CHANGE", {"actual": actual})
        server.emit("OTHER", {})
        received = [await peer.receive() for _ in range(3)]
    assert [(each["event"], each["data"].get("actual")) for each in received] == [
        ("BALLOON_CHANGE", 1),
        ("OTHER", None),
        ("BALLOON_CHANGE", 5),
    ]


async def test_too_many_clients(path: Path) -> None:
    async with serving(path, max_clients=2):
        async with raw_peer(path) as one, raw_peer(path) as two, raw_peer(path) as three:
            await one.negotiate()
            await two.negotiate()
            reply = await three.receive()
            assert reply["error"]["desc"] == "too many QMP clients at once"
            assert await three.receive() is None
            assert "return" in await one.ask(b'{"execute": "query-name"}')
        # Places are free again once the two have been seen to be gone.
        async with asyncio.timeout(20):
            while True:
                async with raw_peer(path) as again:
                    if "QMP" in await again.receive():
                        break

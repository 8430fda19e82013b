from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.qmp import client as client_module
from ballast.qmp import server as server_module
from ballast.qmp.client import CommandRefusedError, connect
from ballast.qmp.server import QmpServer
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import Version
from support.balloon_control import MIB, FakeBalloonControl


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "vm1").mkdir()
    return tmp_path / "vm1" / "qmp.sock"


@pytest.fixture
def vm() -> FakeBalloonControl:
    return FakeBalloonControl()


@pytest.fixture
async def server(
    path: Path, vm: FakeBalloonControl, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[QmpServer]:
    monkeypatch.setattr(server_module, "EVENT_PERIODS_SECONDS", {"BALLOON_CHANGE": 0.02})
    server = QmpServer(vm, path, Version(1, 2, 3, "ballast"))
    await server.start()
    yield server
    await server.close()


async def connect_fails(path: Path) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        async with connect(path):
            pass
    return caught.value


async def test_no_such_vm(path: Path) -> None:
    error = await connect_fails(path)
    assert str(error) == "no VM named vm1 is being served"
    assert error.hint == "see `ballast status`"


async def test_a_socket_that_was_left_behind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert "nobody serves vm1 any more" in str(await connect_fails(path))


async def test_no_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root nothing is forbidden, so the refusal is played.
    async def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(asyncio, "open_unix_connection", refuse)
    error = await connect_fails(path)
    assert "no permission to open" in str(error)
    assert error.hint


async def test_somebody_who_does_not_greet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        error = await connect_fails(path)
    assert isinstance(error, TimedOutError)
    assert "nobody answered" in str(error)


async def test_something_that_is_no_qmp(path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0\r\n")
        writer.close()

    async with await asyncio.start_unix_server(greet, path):
        assert "cannot talk QMP" in str(await connect_fails(path))


@pytest.mark.usefixtures("server")
async def test_execute(path: Path, vm: FakeBalloonControl) -> None:
    async with connect(path) as client:
        assert client.name == "vm1"
        assert await client.query("query-balloon") == {"actual": 2048 * MIB}
        assert await client.execute("balloon", {"value": 5 * MIB}) == {}
    assert vm.target_bytes == 5 * MIB


@pytest.mark.usefixtures("server")
async def test_refusals(path: Path, vm: FakeBalloonControl) -> None:
    vm.actual_bytes = None
    async with connect(path) as client:
        with pytest.raises(CommandRefusedError, match="No balloon device") as caught:
            await client.execute("query-balloon")
        assert caught.value.error_class == "DeviceNotActive"
        with pytest.raises(TimedOutError, match="no statistics within 1 s"):
            await client.execute("ballast-stats", {"fresh": True, "timeout": 1})
        with pytest.raises(OperatorError, match="something unexpected"):
            await client.query("query-commands")


@pytest.mark.usefixtures("server")
async def test_a_reply_that_does_not_come(path: Path, vm: FakeBalloonControl) -> None:
    vm.gate = asyncio.Event()
    async with connect(path) as client:
        with pytest.raises(TimedOutError, match="did not answer ballast-report in"):
            await client.execute("ballast-report", timeout_seconds=0.05)


async def test_a_server_that_goes_away(
    path: Path, server: QmpServer, vm: FakeBalloonControl
) -> None:
    vm.gate = asyncio.Event()
    async with connect(path) as client:
        asked = asyncio.create_task(client.execute("ballast-report"))
        await asyncio.sleep(0)
        await server.close()
        with pytest.raises(OperatorError, match="lost the connection to vm1"):
            await asked

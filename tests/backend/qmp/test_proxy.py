"""One socket for QEMU and its balloon, with a QEMU that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.server import QmpServer
from support.backend import until
from support.balloon_control import MIB, FakeBalloonControl
from support.fake_qemu import GREETING, FakeQemu, fake_qemu
from support.qmp_peer import qmp_client, raw_peer, serving

STATUS_PATH = "/machine/peripheral/balloon0/virtio-backend"
OTHER_PATH = "/machine/peripheral/net0/virtio-backend"
DEVICES = [
    {"name": "virtio-balloon", "path": STATUS_PATH},
    {"name": "virtio-net", "path": OTHER_PATH},
]


@dataclass
class Both:
    """A QEMU, and a socket in front of it.

    Attributes:
        qemu: QEMU.
        vm: Its balloon.
        server: The socket.
        path: Where it is.
    """

    qemu: FakeQemu
    vm: FakeBalloonControl
    server: QmpServer
    path: Path


@asynccontextmanager
async def both(directory: Path) -> AsyncIterator[Both]:
    monitor, vm = QemuMonitor(directory / "qemu.sock"), FakeBalloonControl()
    async with (
        fake_qemu(monitor.path) as qemu,
        serving(directory / "qmp.sock", vm, monitor=monitor) as server,
    ):
        await until(lambda: monitor.run_state is not None)
        yield Both(qemu, vm, server, directory / "qmp.sock")


async def test_each_command_goes_where_it_belongs(tmp_path: Path) -> None:
    async with both(tmp_path) as it, raw_peer(it.path) as peer:
        assert await peer.receive() == GREETING
        await peer.ask(b'{"execute": "qmp_capabilities"}')
        it.qemu.answers |= {"query-name": {"name": "from-qemu"}, "qom-get": "pci"}
        for request, reply in (
            (b'{"execute": "query-name", "id": [1]}', {"return": {"name": "from-qemu"}, "id": [1]}),
            (b'{"execute": "query-balloon"}', {"return": {"actual": 2048 * MIB}}),
            (b'{"execute": "balloon", "arguments": {"value": 1048576}}', {"return": {}}),
        ):
            assert await peer.ask(request) == reply
        assert it.vm.target_bytes == MIB
        interval = b'{"path": "balloon0", "property": "guest-stats-polling-interval"}'
        assert await peer.ask(b'{"execute": "qom-get", "arguments": %b}' % interval) == {
            "return": 0
        }
        other = b'{"path": "balloon0", "property": "type"}'
        assert await peer.ask(b'{"execute": "qom-get", "arguments": %b}' % other) == {
            "return": "pci"
        }
        refused = await peer.ask(b'{"execute": "nope", "id": 2}')
        assert refused == {
            "error": {
                "class": "CommandNotFound",
                "desc": "The command nope has not been found",
            },
            "id": 2,
        }
        assert [each["execute"] for each in it.qemu.asked] == ["query-name", "qom-get", "nope"]


async def test_events_come_as_qemu_sent_them(tmp_path: Path) -> None:
    event = {"event": "X", "data": {"a": [1.5, None]}, "timestamp": {"seconds": 1}}
    async with both(tmp_path) as it, raw_peer(it.path) as one, raw_peer(it.path) as two:
        await one.negotiate()
        await two.negotiate()
        it.qemu.emit(event)
        assert await one.receive() == event
        assert await two.receive() == event
        it.server.emit("BALLOON_CHANGE", {"actual": 5})
        assert (await one.receive())["data"] == {"actual": 5}


async def test_lists_are_completed(tmp_path: Path) -> None:
    theirs = [
        {"name": "query-name", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
        {"name": "balloon", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
        {"name": "0", "meta-type": "object", "members": []},
    ]
    async with both(tmp_path) as it, qmp_client(it.path) as client:
        it.qemu.answers |= {
            "query-commands": [{"name": "query-name"}, {"name": "balloon"}],
            "query-qmp-schema": theirs,
            "qom-list": [{"name": "type", "type": "string"}],
            "qom-list-get": [{"properties": []}, {"properties": []}],
        }
        commands: Any = await client.execute("query-commands")
        names = [each["name"] for each in commands]
        assert len(set(names)) == len(names)
        assert {"query-name", "balloon", "ballast-status"} <= set(names)
        schema: Any = await client.execute("query-qmp-schema")
        assert schema[:3] == theirs
        assert {each["name"] for each in schema} >= {"ballast-stats", "BALLOON_CHANGE"}
        properties: Any = await client.execute("qom-list", {"path": "/machine/peripheral/balloon0"})
        assert [each["name"] for each in properties] == [
            "type",
            "guest-stats",
            "guest-stats-polling-interval",
        ]
        elsewhere = await client.execute("qom-list", {"path": "/machine"})
        assert elsewhere == it.qemu.answers["qom-list"]
        values: Any = await client.execute("qom-list-get", {"paths": ["/machine", "balloon0"]})
        assert values[0] == {"properties": []}
        assert any(each["name"] == "guest-stats" for each in values[1]["properties"])


QUESTIONS = [
    ("x-query-virtio-status", {"path": STATUS_PATH}),
    ("x-query-virtio-status", {"path": "//machine/peripheral/balloon0/virtio-backend"}),
    ("x-query-virtio-status", {"path": "virtio-backend"}),
    ("x-query-virtio-status", {}),
    ("x-query-virtio-queue-status", {"path": STATUS_PATH, "queue": 0}),
    ("x-query-virtio-vhost-queue-status", {"path": STATUS_PATH, "queue": 0}),
    ("human-monitor-command", {"command-line": f"info virtio-status {STATUS_PATH}"}),
    ("human-monitor-command", {"command-line": f' info  virtio-queue-status "{STATUS_PATH}" 0'}),
    ("human-monitor-command", {"command-line": 'info virtio-status "x'}),
    ("human-monitor-command", {"command-line": "info virtio-status"}),
]


@pytest.mark.parametrize(("name", "arguments"), QUESTIONS)
async def test_what_would_end_qemu_is_held_back(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    async with both(tmp_path) as it, qmp_client(it.path) as client:
        it.qemu.answers |= {"x-query-virtio": DEVICES, name: {}}
        with pytest.raises(ExecuteError, match=r"held back: QEMU 11\.1 crashes") as caught:
            await client.execute(name, arguments)
        assert caught.value.error_class == "GenericError"
        assert {each["execute"] for each in it.qemu.asked} == {"x-query-virtio"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("x-query-virtio", {}),
        ("x-query-virtio-status", {"path": OTHER_PATH}),
        ("human-monitor-command", {"command-line": f"info virtio-status {OTHER_PATH}"}),
        ("human-monitor-command", {"command-line": "info balloon"}),
    ],
)
async def test_what_is_harmless_is_not(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    async with both(tmp_path) as it, qmp_client(it.path) as client:
        it.qemu.answers |= {name: {}, "x-query-virtio": DEVICES}
        await client.execute(name, arguments)
        assert it.qemu.asked[-1] == {"execute": name, "arguments": arguments}


async def test_out_of_band_overtakes(tmp_path: Path) -> None:
    async with both(tmp_path) as it, raw_peer(it.path) as peer:
        await peer.receive()
        await peer.ask(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
        it.qemu.answers |= {"slow": {}, "yank": {}}
        it.qemu.gate = asyncio.Event()
        peer.send(b'{"execute": "slow", "id": 1}{"execute": "query-balloon", "id": 2}')
        peer.send(b'{"exec-oob": "yank", "id": 3}{"exec-oob": "ballast-status", "id": 4}')
        overtook = [await peer.receive(), await peer.receive()]
        assert {each["id"] for each in overtook} == {3, 4}
        [refused] = [each for each in overtook if each["id"] == 4]
        assert refused["error"]["desc"] == "The command ballast-status does not support OOB"
        it.qemu.gate.set()
        assert [(await peer.receive())["id"] for _ in range(2)] == [1, 2]
        assert {"exec-oob": "yank", "arguments": {}} in it.qemu.asked


async def test_what_a_client_should_not_have_missed_comes_after_its_negotiation(
    tmp_path: Path,
) -> None:
    async with both(tmp_path) as it:
        it.server.emit("BALLAST_RESTARTED", {"reason": "SERVER", "gap-seconds": None})
        async with raw_peer(it.path) as peer:
            await peer.receive()
            negotiate = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
            assert await peer.ask(negotiate) == {"return": {}}
            assert (await peer.receive())["event"] == "BALLAST_RESTARTED"


async def test_a_flood_waits_where_it_comes_from(tmp_path: Path) -> None:
    async with both(tmp_path) as it, raw_peer(it.path) as flood, qmp_client(it.path) as other:
        await flood.receive()
        await flood.ask(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
        it.qemu.answers["slow"] = {}
        it.qemu.gate = asyncio.Event()
        flood.send(b'{"execute": "slow"}' * 1000)
        flood.writer.write_eof()
        assert await other.execute("query-balloon") == {"actual": 2048 * MIB}
        assert len(it.qemu.asked) < 10
        it.qemu.gate.set()
        assert [await flood.receive() for _ in range(1000)] == [{"return": {}}] * 1000
        assert await flood.receive() is None


async def test_without_qemu_the_balloon_is_there(tmp_path: Path) -> None:
    monitor, path = QemuMonitor(tmp_path / "qemu.sock"), tmp_path / "qmp.sock"
    async with serving(path, monitor=monitor), qmp_client(path) as early:
        assert early.greeting is not None
        assert early.greeting.QMP.version["package"] == "ballast 1.2.3"
        assert await early.execute("query-balloon") == {"actual": 2048 * MIB}
        assert await early.execute("query-name") == {"name": "vm1"}
        with pytest.raises(ExecuteError, match=r"QEMU's monitor is not connected") as caught:
            await early.execute("query-status")
        assert caught.value.error_class == "GenericError"
        async with fake_qemu(monitor.path):
            await until(lambda: monitor.greeting is not None)
            assert await early.execute("query-status") == {"status": "running", "running": True}
            async with qmp_client(path) as late:
                assert late.greeting is not None
                assert late.greeting.QMP.version["package"] == "Debian"
        # Who was greeted by QEMU ends with it, as on QEMU's own socket; who was not, stays.
        await until(lambda: monitor.greeting is None)
        assert await early.execute("query-balloon") == {"actual": 2048 * MIB}


async def test_clients_of_a_qemu_that_ends_get_their_replies_and_the_end(tmp_path: Path) -> None:
    monitor, path = QemuMonitor(tmp_path / "qemu.sock"), tmp_path / "qmp.sock"
    async with serving(path, monitor=monitor) as server:
        async with fake_qemu(monitor.path) as qemu:
            await until(lambda: monitor.greeting is not None)
            qemu.gate = asyncio.Event()
            async with raw_peer(path) as idle, raw_peer(path) as waiting:
                await idle.negotiate()
                await waiting.negotiate()
                waiting.send(b'{"execute": "slow", "id": 1}')
                await until(lambda: bool(qemu.asked))
                qemu.hang_up()
                reply = await waiting.receive()
                assert reply["error"]["desc"] == "QEMU closed its monitor before it answered"
                assert await waiting.receive() is None
                assert await idle.receive() is None
        await until(lambda: server.status()["clients"] == 0)

"""QEMU's own QMP through the balloon's socket, beside a direct connection to the same QEMU."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from ballast.daemon.config import Transport
from ballast.qmp.commands import COMMANDS
from support.qmp_peer import qmp_client
from support.qmp_tools import qmp_shell
from support.system import MIB, Bench, bench, eventually, served

pytestmark = [pytest.mark.qemu, pytest.mark.asyncio]

STATISTICS = [(4, 123 * MIB), (5, 200 * MIB)]
UNSET = (1 << 64) - 1


@dataclass
class Both:
    """A QEMU, reached in two ways.

    Attributes:
        bench: QEMU and its balloon.
        direct: A socket of QEMU's own.
        path: The balloon's socket.
    """

    bench: Bench
    direct: Path
    path: Path

    @property
    def qemu_status(self) -> Any:
        return self.bench.balloon.status()["qemu"]


@asynccontextmanager
async def both(
    qemu: Path, directory: Path, *more: str, transport: Transport = "vhost-user"
) -> AsyncIterator[Both]:
    sockets = [directory / "monitor.sock", directory / "direct.sock"]
    monitors = [f"unix:{each},server=on,wait=off" for each in sockets]
    async with (
        served(qemu_qmp=sockets[0], transport=transport) as balloon,
        bench(qemu, balloon, "-qmp", monitors[0], "-qmp", monitors[1], *more) as started,
    ):
        it = Both(started, sockets[1], balloon.paths.qmp)
        await eventually(lambda: it.qemu_status["run-state"] is not None, "QEMU's QMP is there")
        yield it


async def reply(client: QMPClient, name: str, arguments: dict[str, Any]) -> Any:
    """Return what a client gets for a command, an error included."""
    try:
        return await client.execute(name, arguments)
    except ExecuteError as error:
        return error.error_class, str(error)


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("query-version", {}),
    ("query-status", {}),
    ("query-name", {}),
    ("query-chardev", {}),
    ("query-memory-devices", {}),
    ("qom-list", {"path": "/machine/peripheral"}),
    ("qom-get", {"path": "/machine/peripheral/balloon0", "property": "type"}),
    ("qom-get", {"path": "/machine", "property": "no-such"}),
    ("qom-get", {"path": "no-such", "property": "type"}),
    ("qom-list", {"path": ""}),
    ("human-monitor-command", {"command-line": "info status"}),
    ("device_add", {"driver": "no-such"}),
    ("no-such-command", {}),
    ("query-status", {"unexpected": 1.5}),
    ("x-query-virtio", {}),
]


async def test_both_ways_lead_to_the_same(qemu: Path, socket_dir: Path) -> None:
    async with (
        both(qemu, socket_dir) as it,
        qmp_client(it.path) as ours,
        qmp_client(it.direct) as direct,
    ):
        assert ours.greeting is not None
        assert direct.greeting is not None
        assert ours.greeting._asdict() == direct.greeting._asdict()
        for name, arguments in QUESTIONS:
            assert await reply(ours, name, arguments) == await reply(direct, name, arguments), name

        theirs: Any = await direct.execute("query-commands")
        both_s: Any = await ours.execute("query-commands")
        added = {each["name"] for each in both_s} - {each["name"] for each in theirs}
        assert added == {name for name in COMMANDS if name.startswith("ballast-")}
        their_schema: Any = await direct.execute("query-qmp-schema")
        schema: Any = await ours.execute("query-qmp-schema")
        assert schema[: len(their_schema)] == their_schema
        by_name = {each["name"]: each for each in schema}
        assert len(by_name) == len(schema)
        assert by_name[by_name["ballast-stats"]["arg-type"]]["meta-type"] == "object"


async def test_events_and_the_state_that_they_tell(qemu: Path, socket_dir: Path) -> None:
    async with (
        both(qemu, socket_dir) as it,
        qmp_client(it.path) as ours,
        qmp_client(it.direct) as direct,
    ):
        with ours.listener() as seen, direct.listener() as told:
            for command in ("stop", "cont", "system_reset", "stop"):
                await ours.execute(command)
            for _ in range(4):
                assert await seen.get() == await told.get()
        await eventually(lambda: it.qemu_status["run-state"] == "paused", "QEMU is known to pause")


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qemu-") as directory:
        yield Path(directory)


@pytest.fixture
def shared_file(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "shared").open("wb") as file:
        yield file.fileno()


async def test_a_descriptor_arrives_as_it_does_directly(
    qemu: Path, socket_dir: Path, shared_file: int
) -> None:
    async with both(qemu, socket_dir) as it:
        for number, way in enumerate((it.path, it.direct)):
            async with qmp_client(way) as client:
                assert (await reply(client, "getfd", {"fdname": "mine"}))[0] == "GenericError"
                client.send_fd_scm(shared_file)
                assert await client.execute("getfd", {"fdname": "mine"}) == {}
                client.send_fd_scm(shared_file)
                added: Any = await client.execute("add-fd", {"fdset-id": number})
                assert added["fdset-id"] == number
                # It is the very same file that QEMU has.
                theirs = f"/proc/{it.bench.qtest.pid}/fd/{added['fd']}"
                assert os.path.samestat(os.stat(theirs), os.fstat(shared_file))
                sets: Any = await client.execute("query-fdsets")
                assert {each["fdset-id"] for each in sets} == set(range(number + 1))
                assert await client.execute("closefd", {"fdname": "mine"}) == {}
                assert (await reply(client, "closefd", {"fdname": "mine"}))[0] == "GenericError"


async def test_out_of_band_and_many_clients(qemu: Path, socket_dir: Path) -> None:
    async with both(qemu, socket_dir) as it, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(qmp_client(it.path)) for _ in range(50)]

        async def converse(client: QMPClient, number: int) -> None:
            status: Any = await client.execute("query-status")
            assert status["status"] in ("running", "prelaunch", "paused")
            await client.execute("balloon", {"value": (64 + number) * MIB})
            assert await client.execute_msg({"exec-oob": "query-yank"})  # type: ignore[arg-type]
            with pytest.raises(ExecuteError):
                await client.execute("no-such-command")

        await asyncio.gather(*(converse(each, number) for number, each in enumerate(clients)))
        assert (it.bench.balloon.target_bytes or 0) % MIB == 0
        await it.bench.assert_exact()


async def test_questions_that_would_end_qemu(qemu: Path, socket_dir: Path) -> None:
    more = ("-device", "virtio-rng-pci,id=rng0")
    async with both(qemu, socket_dir, *more) as it, qmp_client(it.path) as client:
        await it.bench.driver.start()
        listed: Any = await client.execute("x-query-virtio")
        paths = {each["name"]: each["path"] for each in listed}
        for name in (
            "x-query-virtio-status",
            "x-query-virtio-queue-status",
            "x-query-virtio-vhost-queue-status",
        ):
            queue = {} if name == "x-query-virtio-status" else {"queue": 0}
            for path in (paths["virtio-balloon"], "balloon0/virtio-backend"):
                with pytest.raises(ExecuteError, match="held back"):
                    await client.execute(name, {"path": path, **queue})
        question = {"path": paths["virtio-rng"], "queue": 0}
        status: Any = await client.execute("x-query-virtio-queue-status", question)
        assert status["name"] == "virtio-rng"
        await it.bench.assert_exact()


async def test_the_balloon_is_ours_and_statistics_end_with_a_reset(
    qemu: Path, socket_dir: Path, tmp_path: Path
) -> None:
    async with both(qemu, socket_dir) as it:
        driver, balloon = it.bench.driver, it.bench.balloon
        ask = "qom-get path=/machine/peripheral/balloon0 property=guest-stats"
        [before] = await qmp_shell(it.path, [ask], tmp_path)
        assert before["return"]["last-update"] == 0
        assert set(before["return"]["stats"].values()) == {UNSET}

        await driver.start()
        await driver.send_statistics(STATISTICS)
        await eventually(lambda: balloon.guest_stats.last_update != 0, "statistics come")
        replies = await qmp_shell(
            it.path,
            [ask, "query-balloon", "stop", ask, "cont", "system_reset", "stop"],
            tmp_path,
        )
        for answer in (replies[0], replies[3]):
            assert answer["return"]["stats"]["stat-free-memory"] == 123 * MIB
            assert answer["return"]["last-update"] != 0
        assert replies[1] == {"return": {"actual": 256 * MIB}}
        # As in QEMU's own test of its balloon: a reset ends them, before any driver is there.
        await eventually(lambda: balloon.guest_stats.last_update == 0, "the reset is noticed")
        [after] = await qmp_shell(it.path, [ask], tmp_path)
        assert after == before


async def test_a_pause_shows_in_the_status(
    qemu: Path, socket_dir: Path, transport: Transport
) -> None:
    async with (
        both(qemu, socket_dir, transport=transport) as it,
        qmp_client(it.path) as client,
    ):
        await it.bench.driver.start()
        status = it.bench.balloon.status
        await eventually(lambda: status()["state"] == "running", "the driver runs")
        await client.execute("stop")
        await eventually(lambda: status()["state"] == "paused", "the pause shows")
        await client.execute("cont")
        await eventually(lambda: status()["state"] == "running", "it is over")


async def test_qemu_ends_and_so_do_its_clients(qemu: Path, socket_dir: Path) -> None:
    async with both(qemu, socket_dir) as it:
        reader, writer = await asyncio.open_unix_connection(it.path)
        assert "QMP" in json.loads(await reader.readline())
        writer.write(b'{"execute": "qmp_capabilities"}{"execute": "quit", "id": "last"}')
        received = [json.loads(line) async for line in reader]
        assert received[0] == {"return": {}}
        events = [each["event"] for each in received if "event" in each]
        assert events == ["SHUTDOWN"]
        assert {"return": {}, "id": "last"} in received
        writer.close()
        await eventually(lambda: not it.qemu_status["connected"], "QEMU is gone")
        async with qmp_client(it.path) as client:
            with pytest.raises(ExecuteError, match="QEMU's monitor is not connected"):
                await client.execute("query-status")
            status: Any = await client.execute("ballast-status")
            assert status["state"] == "waiting-for-qemu"

"""Workers that are killed under a front-end that behaves like QEMU, on both transports."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.config import Transport
from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError
from support.daemons import POLL_SECONDS, daemon, keeper_status, status_with
from support.driver import PAGE_SIZE
from support.machine import FREE, Machine, machine_at
from support.vfio_machine import VfioMachine, vfio_machine_at

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]

ROUNDS = 5
BUFFERS = 24


@pytest.fixture(params=["vhost-user", "vfio-user"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return "vfio-user" if request.param == "vfio-user" else "vhost-user"


@asynccontextmanager
async def guest_at(root: Path, transport: Transport) -> AsyncIterator[Machine | VfioMachine]:
    """Connect a machine whose driver runs."""
    path = VmPaths("web", root).device(transport)
    await keeper_status(root)
    if transport == "vhost-user":
        async with machine_at(path) as machine:
            await machine.start()
            yield machine
    else:
        async with vfio_machine_at(path) as vfio_machine:
            await vfio_machine.start()
            yield vfio_machine


async def ask(root: Path, command: str, **arguments: object) -> Any:
    """Execute a QMP command, again if the worker dies over it."""
    while True:
        try:
            async with qmp.connect(VmPaths("web", root).qmp) as client:
                return await client.execute(command, arguments)
        except OperatorError:
            await asyncio.sleep(POLL_SECONDS)


async def held(root: Path) -> set[int]:
    """Return the pages in the books."""
    runs = (await ask(root, "ballast-ledger"))["runs"]
    return {page for first, count in runs for page in range(first, first + count)}


async def inflate_and_deflate(machine: Machine | VfioMachine, choose: random.Random) -> set[int]:
    """Give up many pages in many buffers, take some of them back; return what is given up."""
    given: set[int] = set()
    for _ in range(BUFFERS):
        pages = choose.sample(sorted(set(FREE) - given), 8)
        await machine.inflate(*pages)
        given |= set(pages)
        back = choose.sample(sorted(given), 4)
        await machine.deflate(*back)
        given -= set(back)
    return given


async def test_whoever_waits_for_an_answer_gets_it_once(root: Path, transport: Transport) -> None:
    choose = random.Random(5)
    async with (
        daemon(root, "serve", "web", "--transport", transport) as served,
        guest_at(root, transport) as machine,
    ):
        pid = int((await keeper_status(root))["worker-pid"])
        given: set[int] = set()
        for number in range(1, ROUNDS + 1):
            await machine.deflate(*given)
            work = asyncio.create_task(inflate_and_deflate(machine, choose))
            await asyncio.sleep(choose.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
            given = await work
            status = await status_with(root, restarts=number)
            assert status["worker-pid"] != pid
            pid = status["worker-pid"]
            assert await held(root) == given
        # An operator's wish outlives them too.
        await ask(root, "balloon", value=8 << 20)
        os.kill(pid, signal.SIGKILL)
        await status_with(root, restarts=ROUNDS + 1)
        assert (await ask(root, "ballast-status"))["target-bytes"] == 8 << 20
        assert (await machine.config()).num_pages == (16 << 20 >> 12) - (8 << 20 >> 12)
        await machine.set_actual(len(given))
        assert (await ask(root, "query-balloon"))["actual"] == (16 << 20) - len(given) * PAGE_SIZE
        assert "QEMU has gone" not in served.log


async def test_a_guest_that_works_while_everything_is_replaced(
    root: Path, transport: Transport
) -> None:
    choose = random.Random(6)
    async with (
        daemon(root, "serve", "web", "--transport", transport) as served,
        guest_at(root, transport) as machine,
    ):
        first = await keeper_status(root)
        work = asyncio.create_task(inflate_and_deflate(machine, choose))
        served.signal(signal.SIGHUP)
        await status_with(root, upgrades=1)
        given = await work
        assert await held(root) == given

        await machine.deflate(*given)
        work = asyncio.create_task(inflate_and_deflate(machine, choose))
        served.signal(signal.SIGKILL)
        await served.ended()
        given = await work
        await served.logged("holds everything now")
        second = await keeper_status(root)
        assert second["keeper-pid"] != first["keeper-pid"]
        os.kill(second["worker-pid"], signal.SIGKILL)
        await status_with(root, restarts=1)
        assert await held(root) == given
        await machine.deflate(*given)
        assert not await held(root)


async def test_a_qemu_that_comes_and_goes_while_nobody_serves(
    root: Path, transport: Transport
) -> None:
    """A worker that is stopped stands for one that does not come back for long."""
    async with daemon(root, "serve", "web", "--transport", transport):
        pid = int((await keeper_status(root))["worker-pid"])
        async with guest_at(root, transport) as machine:
            await machine.inflate(*FREE[:9])
            os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        await status_with(root, restarts=1)
        assert not await held(root)
        async with guest_at(root, transport) as machine:
            await machine.inflate(*FREE[:3])
            assert await held(root) == set(FREE[:3])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path

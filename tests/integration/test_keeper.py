"""Keeper and workers as real processes, in each of the three ways; no QEMU."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.paths import VmPaths
from support.daemons import (
    ballast,
    ballast_json,
    daemon,
    eventually,
    keeper_status,
    processes_of,
    status_with,
)
from support.driver import PAGE_SIZE
from support.machine import RAM_BYTES, machine_at

STEP_PAGES = 256
"""The smallest step of a rate limit: 1 MiB."""

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def paths_of(root: Path) -> VmPaths:
    return VmPaths("web", root)


async def resizing(root: Path, wanted: Callable[[Any], bool]) -> Any:
    """Return what is known of the VM's target, once it is as wanted."""
    async with asyncio.timeout(60):
        while True:
            (status,) = await ballast_json(root, "status")
            if wanted(status["resizing"]):
                return status["resizing"]


# The parent


async def test_a_worker_that_is_killed_is_replaced_and_upgraded(root: Path) -> None:
    async with daemon(root, "serve", "web", "--keeper", "parent") as served:
        first = await keeper_status(root)
        assert (first["mode"], first["keeper-pid"]) == ("parent", served.process.pid)
        lock = paths_of(root).lock
        assert lock.read_text() == f"{served.process.pid}\n"

        os.kill(first["worker-pid"], signal.SIGKILL)
        second = await status_with(root, restarts=1)
        assert second["last-reason"] == "was killed by SIGKILL"
        assert second["last-gap-seconds"] < 60
        assert "worker restarted once; last: was killed by SIGKILL, guest waited" in (
            await ballast(root, "status", "web")
        )
        # The name was never free.
        complaint = await ballast(root, "serve", "web", "--no-keeper", status=1)
        assert f"already served by process {served.process.pid}" in complaint

        (upgraded,) = await ballast_json(root, "upgrade", "web")
        assert upgraded["old-pid"] == second["worker-pid"]
        third = await keeper_status(root)
        assert upgraded["new-pid"] == third["worker-pid"] != upgraded["old-pid"]
        assert (third["upgrades"], third["restarts"], third["upgrade-error"]) == (1, 1, "")

        served.signal(signal.SIGHUP)
        await status_with(root, upgrades=2)
        served.signal(signal.SIGTERM)
        assert await served.ended() == 0
    assert not paths_of(root).directory.exists()
    assert not processes_of(root)


async def test_a_resize_goes_on_when_its_worker_is_killed(root: Path) -> None:
    async with daemon(root, "serve", "web", "--keeper", "parent"):
        first = await keeper_status(root)
        await ballast(root, "set", "web", "2G")
        waiting = asyncio.create_task(
            ballast(root, *("set", "web", "1G", "--wait", "-t", "10", "--rollback"), status=3)
        )
        await resizing(root, lambda found: found["current"] is not None)
        os.kill(first["worker-pid"], signal.SIGKILL)
        await status_with(root, restarts=1)
        found = await resizing(root, lambda found: True)
        assert found["current"] is None or found["current"]["id"] == 1
        # Who waits has the result, although it comes from another process than the number.
        assert "no QEMU has connected after 10 s; the target is 2 GiB again" in await waiting
        await ballast(root, "hold", "web", "--reason", "a test")
        os.kill((await keeper_status(root))["worker-pid"], signal.SIGKILL)
        await status_with(root, restarts=2)
        complaint = await ballast(root, "set", "web", "1G", status=1)
        assert "on hold: a test" in complaint
        found = await resizing(root, lambda found: True)
        assert (found["last"]["id"], found["last"]["result"]) == (1, "timed-out")


async def test_a_paced_resize_of_a_guest_goes_on_when_its_worker_is_killed(root: Path) -> None:
    wanted, limit = 1024, ("--rate", "1M", "-t", "100")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(daemon(root, "serve", "web", "--keeper", "parent"))
        first = await keeper_status(root)
        machine = await stack.enter_async_context(machine_at(paths_of(root).vhost_user))
        await machine.start()
        await machine.config()
        size = str(RAM_BYTES - wanted * PAGE_SIZE)
        waiting = asyncio.create_task(
            ballast_json(root, "set", "web", size, "--wait", "--stall-timeout", "0", *limit)
        )
        asked, killed_at = 0, 0
        while asked < wanted:
            before, asked = asked, (await machine.config()).num_pages
            # Never a leap: the successor knows how far its predecessor had gone.
            assert before <= asked <= before + 2 * STEP_PAGES
            await machine.set_actual(asked)
            if not killed_at and asked >= wanted // 2:
                killed_at = asked
                os.kill(first["worker-pid"], signal.SIGKILL)
            await asyncio.sleep(0.05)
        result = await waiting
        assert (result["id"], result["result"]) == (1, "reached")
        assert (await keeper_status(root))["restarts"] == 1
        assert 0 < killed_at < wanted


async def test_a_configuration_that_is_broken_stops_an_upgrade_and_no_restart(root: Path) -> None:
    config = root / "vms.toml"
    config.write_text("[vm.web]\n")
    async with daemon(root, "serve", "--config", str(config), "--keeper", "parent"):
        first = await keeper_status(root)
        config.write_text("[vm.web]\ncolour = 'blue'\n")
        complaint = await ballast(root, "upgrade", status=1)
        assert "the upgrade has failed: the new version ended (1)" in complaint
        assert "vm.web: colour" in complaint
        second = await keeper_status(root)
        assert second["worker-pid"] == first["worker-pid"]
        assert "colour" in second["upgrade-error"]
        os.kill(first["worker-pid"], signal.SIGKILL)
        await status_with(root, restarts=1)


async def test_a_keeper_that_is_killed_is_replaced_by_the_worker(root: Path) -> None:
    async with daemon(root, "serve", "web", "--keeper", "parent") as served:
        first = await keeper_status(root)
        qemu = socket.socket(socket.AF_UNIX)
        qemu.connect(str(paths_of(root).vhost_user))
        await served.logged("connected")
        served.signal(signal.SIGKILL)
        await served.ended()
        await served.logged("holds everything now")
        second = await keeper_status(root)
        assert second["worker-pid"] == first["worker-pid"]
        assert second["keeper-pid"] != first["keeper-pid"]
        os.kill(first["worker-pid"], signal.SIGKILL)
        third = await status_with(root, restarts=1)
        assert third["keeper-pid"] == second["keeper-pid"]
        qemu.close()
        os.kill(int(paths_of(root).lock.read_text()), signal.SIGTERM)
        await eventually(lambda: not paths_of(root).directory.exists(), "all is tidied up")


async def test_what_cannot_be_served_ends_at_once(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(root / "taken"))
        taken.listen()
        complaint = await ballast(
            root,
            *("serve", "web", "--keeper", "parent", "--socket-path", str(root / "taken")),
            status=1,
        )
        assert "another process is listening" in complaint
    complaint = await ballast(root, "serve", "web", "web", "--keeper", "parent", status=1)
    assert "named twice" in complaint
    await ballast(root, "serve", "web", "--keeper", "parent", "--no-keeper", status=2)


async def test_an_inherited_listener_outlives_workers(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
        listener.listen()
        fd = listener.fileno()
        async with daemon(
            root, "serve", "web", "--keeper", "parent", "--fd", str(fd), pass_fds=(fd,)
        ):
            first = await keeper_status(root)
            os.kill(first["worker-pid"], signal.SIGKILL)
            await status_with(root, restarts=1)
            listener.close()
            with socket.socket(socket.AF_UNIX) as qemu:
                qemu.connect(str(root / "s"))
                await eventually(lambda: True, "connected")


# A service of its own


async def test_workers_come_and_go_beside_a_keeper_of_its_own(root: Path) -> None:
    path = root / "keeper.sock"
    attach = ("serve", "web", "--keeper", str(path))
    assert "no keeper listens" in await ballast(root, *attach, "--keeper-timeout", "0", status=3)
    async with daemon(root, *attach) as first:
        await first.logged("waiting for a keeper")
        async with daemon(root, "keeper") as keeper:
            status = await keeper_status(root)
            assert (status["mode"], status["keeper-pid"]) == ("service", keeper.process.pid)
            refused = await ballast(root, *attach, status=1)
            assert f"worker {status['worker-pid']} is at work" in refused
            assert "cannot be replaced" in await ballast(root, "upgrade", "web", status=1)

            first.signal(signal.SIGTERM)
            assert await first.ended() == 0
            await keeper.logged("wait for the next")
            assert paths_of(root).qmp.is_socket()
            async with daemon(root, *attach) as second:
                status = await status_with(root, restarts=1)
                assert status["worker-pid"] == second.process.pid

                keeper.signal(signal.SIGKILL)
                await second.logged("VMs go on")
                async with daemon(root, "keeper") as another:
                    await second.logged("another keeper")
                    status = await status_with(root, keeper_pid=another.process.pid)
                    assert status["worker-pid"] == second.process.pid
                    second.signal(signal.SIGKILL)
                    await second.ended()
                    async with daemon(root, *attach):
                        await status_with(root, restarts=1)

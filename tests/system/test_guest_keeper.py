"""Real guests under a daemon whose processes are killed and replaced, on both transports."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.config import Transport
from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_images.guest import GuestImage
from support.daemons import ballast, ballast_json, daemon, keeper_status, status_with
from support.system import MIB, SETTLE_SECONDS, eventually, guest_at

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 512 * MIB
SMALL_BYTES = 288 * MIB


async def status(root: Path) -> Any:
    return await ballast_json(root, "status", "web")


async def assert_settled(root: Path, bytes_wanted: int) -> None:
    """Have the guest reach a size, and see that everybody comes to agree on it.

    The size is reached before that: the agent may yet take over from the guest's kernel.
    """
    await ballast(root, "set", "web", str(bytes_wanted), "--wait")
    async with asyncio.timeout(SETTLE_SECONDS):
        while not (found := await status(root))["settled"]:
            pass
    assert found["actual-bytes"] == bytes_wanted
    assert found["ledger"]["bytes"] == RAM_BYTES - bytes_wanted
    assert found["ledger"]["difference-bytes"] == 0


async def kill_worker_in_mid_inflate(root: Path, restarts: int) -> None:
    """Begin to shrink the guest, and kill the worker when its agent has given a part."""
    before = await keeper_status(root)
    async with qmp.connect(VmPaths("web", root).qmp) as client:
        await client.execute("balloon", {"value": SMALL_BYTES})
        async with asyncio.timeout(SETTLE_SECONDS):
            while await client.query("query-balloon") == {"actual": RAM_BYTES}:
                pass
    os.kill(before["worker-pid"], signal.SIGKILL)
    after = await status_with(root, restarts=restarts)
    assert after["worker-pid"] != before["worker-pid"]
    print(f"guest waited {after['last-gap-seconds'] * 1000:.1f} ms")


async def test_a_guest_notices_nothing(
    qemu: Path, image: GuestImage, transport: Transport, tmp_path: Path
) -> None:
    paths = VmPaths("web", tmp_path)
    async with daemon(tmp_path, "serve", "web", "--transport", transport) as served:
        await keeper_status(tmp_path)
        async with guest_at(paths, qemu, image, transport=transport, memory_bytes=RAM_BYTES) as vm:
            await kill_worker_in_mid_inflate(tmp_path, 1)
            await assert_settled(tmp_path, SMALL_BYTES)
            await assert_settled(tmp_path, RAM_BYTES)

            (upgraded,) = await ballast_json(tmp_path, "upgrade")
            assert upgraded["new-pid"] != upgraded["old-pid"]

            # Without its keeper the worker goes on, and has another one catch its own end.
            served.signal(signal.SIGKILL)
            await served.ended()
            await served.logged("holds everything now")
            await kill_worker_in_mid_inflate(tmp_path, 2)
            await assert_settled(tmp_path, SMALL_BYTES)
            agent: Any = (await status(tmp_path))["agent"]
            assert agent["state"] != "no-qemu"

            # A guest that reboots is one more thing that a worker can die of.
            reboot = asyncio.create_task(vm.shell.reboot())
            await asyncio.sleep(1.0)
            os.kill((await keeper_status(tmp_path))["worker-pid"], signal.SIGKILL)
            await reboot
            await assert_settled(tmp_path, RAM_BYTES - 64 * MIB)
            assert vm.status is None, vm.error_text()
            await vm.shutdown()
        await eventually(lambda: served.log.count("disconnected") > 0, "QEMU has gone")
        last = await status(tmp_path)
        assert last["state"] == "waiting-for-qemu"
        os.kill(int(paths.lock.read_text()), signal.SIGTERM)
        await eventually(lambda: not paths.directory.exists(), "all is tidied up")

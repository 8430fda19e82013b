"""The huge balloon of a real guest under a worker that is killed when all has been given."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_images.guest import GuestImage
from support.daemons import asked, daemon, keeper_status
from support.system import GIB, MIB, guest_at

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

HELD_BYTES = 512 * MIB
KERNEL_BYTES = 3 * 4096
TARGET_BYTES = GIB - HELD_BYTES - KERNEL_BYTES


async def test_a_worker_that_is_killed_asks_nobody_for_another_amount(
    qemu: Path, image: GuestImage, tmp_path: Path
) -> None:
    """Its successor presumes what the books said, and is told it again by the agent."""
    paths = VmPaths("web", tmp_path)
    async with daemon(tmp_path, "serve", "web", "--no-free-page-reporting"):
        await keeper_status(tmp_path)
        async with guest_at(paths, qemu, image, memory_bytes=GIB) as vm:
            await worker_is_killed(paths)
            await vm.shell.run(f"memtool fill --bytes {640 * MIB}", timeout_s=200)
            assert vm.status is None, vm.error_text()


async def worker_is_killed(paths: VmPaths) -> None:
    """Have half of the guest given up, kill the worker, and have all of it back."""
    await asked(paths, lambda status: status["blocks"]["obstacle"] is None)
    await resized(paths, TARGET_BYTES)
    before = await asked(
        paths, lambda status: status["settled"] and status["ledger"]["agent-bytes"] == HELD_BYTES
    )
    os.kill(before["keeper"]["worker-pid"], signal.SIGKILL)
    accepted = before["blocks"]["counters"]["accepted-bytes"]
    sizes = set[object]()

    def is_told_again(status: dict[str, Any]) -> bool:
        if status["keeper"]["restarts"] == 0:
            return False
        sizes.add(status["actual-bytes"])
        return bool(status["blocks"]["counters"]["accepted-bytes"] == accepted + HELD_BYTES)

    after = await asked(paths, is_told_again)
    assert sizes == {TARGET_BYTES}
    assert after["ledger"]["kernel-bytes"] == KERNEL_BYTES
    assert after["ledger"]["agent-bytes"] == HELD_BYTES
    await resized(paths, GIB)
    await asked(paths, lambda status: status["settled"])


async def resized(paths: VmPaths, size_bytes: int) -> None:
    """Set a target."""
    async with qmp.connect(paths.qmp) as client:
        await client.execute("balloon", {"value": size_bytes})

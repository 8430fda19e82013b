"""A real guest whose memory is huge pages of the host, under a worker that is killed.

With reports over one transport and without them over the other, where the books alone explain what
the host holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.config import Transport
from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_images.guest import GuestImage
from ballast_images.vm import Vm
from support.daemons import asked, ballast, daemon, keeper_status
from support.hugetlb import HUGE_PAGE, available_huge_pages, huge_pages
from support.system import MIB, SETTLE_SECONDS, guest_at

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio]

RAM_BYTES = 768 * MIB
SMALL_BYTES = 384 * MIB
DIRTY_BYTES = 448 * MIB
KEPT_BYTES = 48 * MIB
SPARE_PAGES = 4
A_FEW_PAGES = 16
"""What the guest may use meanwhile; far less than it has given back."""

MEMORY = "hugetlb=on,hugetlbsize=2M"


async def test_huge_pages_go_back_and_no_data_is_lost(
    qemu: Path, image: GuestImage, transport: Transport, tmp_path: Path
) -> None:
    paths, reports = VmPaths("web", tmp_path), transport == "vfio-user"
    options = ("--no-agent-blocks", *(() if reports else ("--no-free-page-reporting",)))
    with huge_pages(RAM_BYTES // HUGE_PAGE + SPARE_PAGES):
        async with daemon(tmp_path, "serve", "web", "--transport", transport, *options):
            await keeper_status(tmp_path)
            async with guest_at(
                *(paths, qemu, image),
                transport=transport,
                memory_bytes=RAM_BYTES,
                memory_options=MEMORY,
            ) as vm:
                async with data_is_kept(vm):
                    if reports:
                        await free_memory_is_reported(paths, vm)
                    await balloon_frees_huge_pages(paths, tmp_path, vm)
                assert vm.status is None, vm.error_text()


@asynccontextmanager
async def data_is_kept(vm: Vm) -> AsyncIterator[None]:
    """Have a program of the guest write memory and look at it all the while."""
    command = f"memtool verify-loop --bytes {KEPT_BYTES} --stop-file /tmp/enough"
    checking = asyncio.create_task(vm.shell.run(command, timeout_s=800))
    try:
        yield
        await vm.shell.run("touch /tmp/enough")
        found = (await checking).json()
    finally:
        checking.cancel()
    assert found["wrong_pages"] == 0
    assert found["passes"] > 0


async def free_memory_is_reported(paths: VmPaths, vm: Vm) -> None:
    """Have the guest report what it has freed: in blocks of 2 MiB, which are whole huge pages."""
    await vm.shell.run(f"memtool dirty --bytes {DIRTY_BYTES}", timeout_s=100)
    # A huge page that was never used stays reserved for the guest when it is reported.
    found = await asked(
        paths,
        lambda status: (
            available_huge_pages() > DIRTY_BYTES // 4 // HUGE_PAGE
            and status["host"]["allocated-bytes"] < RAM_BYTES - DIRTY_BYTES // 4
        ),
    )
    assert found["counters"]["reported-bytes"] >= DIRTY_BYTES // 4
    assert found["counters"]["reports-refused"] == 0


async def balloon_frees_huge_pages(paths: VmPaths, root: Path, vm: Vm) -> None:
    """Shrink a guest that has used most of its memory, in pages of 4 KiB, and let it grow again."""
    await vm.shell.run(f"memtool dirty --bytes {DIRTY_BYTES}", timeout_s=100)
    before = await asked(paths, lambda status: status["settled"])
    assert "MUST_TELL_HOST" in before["features"]
    async with qmp.connect(paths.qmp) as client:
        await client.execute("balloon", {"value": SMALL_BYTES})
        async with asyncio.timeout(SETTLE_SECONDS):
            while await client.query("query-balloon") == {"actual": RAM_BYTES}:
                pass
    await worker_is_killed(paths)
    after = await asked(
        paths,
        lambda status: status["settled"] and status["ledger"]["bytes"] == RAM_BYTES - SMALL_BYTES,
    )
    waiting = after["ledger"]["waiting-bytes"]
    print(f"{waiting >> 10} KiB wait for whole huge pages")
    assert waiting < (RAM_BYTES - SMALL_BYTES) // 2
    assert after["host"]["allocated-bytes"] <= SMALL_BYTES + waiting
    available = available_huge_pages()
    given_back = before["host"]["allocated-bytes"] - after["host"]["allocated-bytes"]
    assert available >= given_back // HUGE_PAGE

    # What a successor maps stays free for others.
    await worker_is_killed(paths)
    await asked(paths, lambda status: status["settled"])
    assert available_huge_pages() >= available - A_FEW_PAGES

    await ledger_is_exact(paths, vm)
    await ballast(root, "set", "web", str(RAM_BYTES), "--wait")
    assert (await asked(paths, lambda status: status["settled"]))["ledger"]["waiting-bytes"] == 0
    filled = (await vm.shell.run(f"memtool fill --bytes {DIRTY_BYTES}", timeout_s=100)).json()
    assert filled["wrong_pages"] == 0


async def worker_is_killed(paths: VmPaths) -> None:
    """Kill the worker, and wait until another one has taken over."""
    keeper = (await asked(paths, lambda status: status["keeper"]["worker-pid"]))["keeper"]
    os.kill(keeper["worker-pid"], signal.SIGKILL)
    await asked(paths, lambda status: status["keeper"]["restarts"] > keeper["restarts"])


async def ledger_is_exact(paths: VmPaths, vm: Vm) -> None:
    """See that the books hold the pages that the guest's kernel calls its balloon's."""
    async with qmp.connect(paths.qmp) as client:
        ledger: Any = await client.query("ballast-ledger")
    assert (await vm.shell.run("memtool ballooned")).json()["runs"] == ledger["runs"]

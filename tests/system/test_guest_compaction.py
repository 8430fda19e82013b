"""The books against a guest whose kernel moves the balloon's pages about."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import pytest

from ballast.daemon.config import Transport
from ballast_images.guest import GuestImage
from support.system import (
    MIB,
    Guest,
    Targets,
    booted,
    changing_targets,
    served,
    settle,
    settled,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 384 * MIB
HELD_BYTES = 100 * MIB
BALLOON_BYTES = 160 * MIB

FRAGMENTER = """
import mmap, os, sys, time
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for offset in range(0, size, 4096):
    memory[offset] = 1
for offset in range(0, size, 8192):
    memory.madvise(mmap.MADV_DONTNEED, offset, 4096)
open("/tmp/fragmented", "w").close()
while not os.path.exists("/tmp/stop"):
    time.sleep(0.05)
"""
"""Holds every second page of its memory, so that what is free between them is single pages."""

CHECKING = f"memtool verify-loop --remap --bytes {20 * MIB} --stop-file /tmp/enough"
"""Writes memory, compares it, frees it, again and again."""

CHECKED = "touch /tmp/enough; until [ -s /tmp/checked ]; do sleep 0.05; done; cat /tmp/checked"

COMPACT = "echo 1 > /proc/sys/vm/compact_memory"


async def fragment(guest: Guest) -> None:
    """Blow the balloon up in single pages, with free pages between them."""
    await settle(guest.balloon, RAM_BYTES)
    await guest.vm.shell.run(["sh", "-c", "cat > /tmp/fragment.py"], stdin=FRAGMENTER)
    await guest.run("rm -f /tmp/stop /tmp/fragmented")
    start = f"python3 /tmp/fragment.py {HELD_BYTES} >/tmp/fragment.log 2>&1 & echo $!"
    process = (await guest.run(start)).strip()
    await guest.run("until [ -e /tmp/fragmented ]; do sleep 0.05; done")
    await settle(guest.balloon, RAM_BYTES - BALLOON_BYTES)
    assert len(guest.balloon.ledger_runs()) > 1000
    await guest.run(f"touch /tmp/stop; while kill -0 {process} 2>&-; do sleep 0.05; done")


async def compact(
    guest: Guest, least_moved: int, meanwhile: Callable[[], AbstractAsyncContextManager[object]]
) -> None:
    """Fragment and compact until that many pages were moved, checking the books each time.

    How many one compaction moves depends on where in memory the balloon happens to be.
    """
    before = await guest.vmstat("balloon_migrate")
    for _ in range(8):
        await fragment(guest)
        async with meanwhile():
            for _ in range(3):
                await guest.run(COMPACT)
        await settled(guest.balloon)
        await guest.assert_well()
        moved = await guest.vmstat("balloon_migrate") - before
        if moved >= least_moved:
            return
    pytest.fail(f"the guest's kernel moved only {moved} pages")


async def test_the_books_follow_every_page_that_compaction_moves(
    qemu: Path, image: GuestImage, transport: Transport
) -> None:
    def small_changes() -> AbstractAsyncContextManager[Targets]:
        # Not without pause: no page is moved while the driver is inflating or deflating.
        highest, span = RAM_BYTES - BALLOON_BYTES, 2 * MIB
        return changing_targets(balloon, highest, span, pause_seconds=0.05)

    async with (
        served(transport=transport) as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES) as guest,
    ):
        await compact(guest, 1000, nullcontext)
        await guest.run(f"{CHECKING} >/tmp/checked 2>&1 &")
        await compact(guest, 200, small_changes)
        checked = json.loads(await guest.run(CHECKED))
        assert checked["passes"] > 0
        assert checked["wrong_pages"] == 0
        await settle(balloon, RAM_BYTES)
        assert await guest.ballooned() == balloon.ledger_runs() == []

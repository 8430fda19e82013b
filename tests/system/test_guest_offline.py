"""Memory of a guest goes offline while its agent takes blocks, on the newest kernel that there is.

That is how Linux takes pages out of the pool that the agent keeps its blocks in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ballast_images.guest import build_guest
from support.guest_blocks import (
    agent_is_calm,
    agent_is_ready,
    assert_exact,
    blocks,
    hold,
    pool,
    sweep,
    verifying,
)
from support.system import GIB, MIB, Guest, booted, eventually, served

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

MEMORY = "/sys/devices/system/memory"
STOP = "/tmp/stop-storm"
STORM = f"""
n=0
while [ ! -e {STOP} ]; do
    for m in 2 3 4 5 6 7; do
        state={MEMORY}/memory$m/state
        echo offline >$state 2>/dev/null && n=$((n+1)) && echo online >$state
    done
done
echo $n
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(qemu: Path) -> AsyncIterator[Guest]:
    async with (
        served(agent_blocks=True) as balloon,
        booted(
            qemu,
            build_guest(suite="trixie-backports"),
            balloon,
            memory_bytes=GIB,
            nodes=2,
        ) as guest,
    ):
        await agent_is_ready(guest)
        yield guest


async def go_offline(guest: Guest, numbers: set[int]) -> set[int]:
    """Take blocks of memory offline, and back; return those that went."""
    went = await guest.run(
        f"for n in {' '.join(map(str, numbers))}; do state={MEMORY}/memory$n/state;"
        " echo offline >$state && echo $n && echo online >$state; done 2>/dev/null; true"
    )
    return {int(number) for number in went.split()}


async def test_what_is_held_does_not_go_offline(guest: Guest) -> None:
    size_bytes = int(await guest.run(f"cat {MEMORY}/block_size_bytes"), 16)
    await hold(guest, 300 * MIB)
    before = await pool(guest)
    numbers = {pfn * 4096 // size_bytes for first, n in before for pfn in range(first, first + n)}
    assert await go_offline(guest, numbers) == set()
    assert await pool(guest) == before
    await assert_exact(guest)
    await hold(guest, 0)
    assert await go_offline(guest, numbers), "it does when it is not held"


async def test_memory_that_goes_offline_while_blocks_are_taken(guest: Guest) -> None:
    """Nothing is lost, whatever the kernel takes out of the pool before it is reserved."""
    storm = asyncio.create_task(guest.run(STORM, timeout_s=300))
    reported = blocks(guest)["counters"]["reported-bytes"]
    # A sweep leaves little, and the kernel may take a whole block of it away before the agent sees
    # that: then somebody is killed.
    async with verifying(guest, 30 * MIB, may_be_killed=True):
        for _ in range(6):
            await agent_is_calm(guest)
            for size in (150 * MIB, 50 * MIB, 150 * MIB):
                # What is offline may leave too little to take all of it.
                guest.balloon.set_target(GIB - size)
                await eventually(lambda: is_settled(guest), "the agent has done what it can")
            await sweep(guest)
            guest.balloon.set_target(GIB)
        await guest.run(f"touch {STOP}")
    gone = int((await storm).split()[-1])
    reported = blocks(guest)["counters"]["reported-bytes"] - reported
    print(f"{gone} times 128 MiB went offline, while {reported / MIB:.0f} MiB were reported")
    assert gone > 0
    assert reported > GIB
    await guest.run(f"for m in {MEMORY}/memory*/state; do echo online >$m; done 2>/dev/null; true")
    await agent_is_calm(guest)
    await hold(guest, 200 * MIB)
    await assert_exact(guest, may_be_short=True)
    await hold(guest, 0)
    assert await pool(guest) == []


def is_settled(guest: Guest) -> bool:
    status = blocks(guest)["agent"]
    goal = blocks(guest)["goal-bytes"]
    return bool(status["goal-bytes"] == goal and status["settled"]) or status["pressure"]

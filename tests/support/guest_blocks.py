"""What tests of the agent's blocks in a real guest do and look at."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ballast.balloon.ranges import Run
from ballast.soak.storm import KILL_AGENT
from support.system import Guest, eventually

KPF_HUGE = 17
TROUBLE = re.compile(r"Out of memory|BUG|Oops|Bad page|WARNING:|corrupt|blocked for more than")


async def agent_is_ready(guest: Guest) -> None:
    await eventually(lambda: blocks(guest)["obstacle"] is None, "the agent takes blocks")


def blocks(guest: Guest) -> Any:
    return guest.balloon.status()["blocks"]


def held_bytes(guest: Guest) -> int:
    return guest.balloon.device.blocks.hold_bytes


async def hold(guest: Guest, size_bytes: int) -> None:
    """Have the agent hold so much, and wait until it does."""
    guest.balloon.set_target((guest.balloon.ram_bytes or 0) - size_bytes)
    await eventually(lambda: held_bytes(guest) == size_bytes, f"{size_bytes} bytes are held")


async def pool(guest: Guest) -> list[Run]:
    """Return the pages of the guest's huge page pool, as (first page, count)."""
    found = await guest.memtool(f"ballooned --bit {KPF_HUGE}")
    return [(first, count) for first, count in found["runs"]]


async def assert_exact(guest: Guest) -> None:
    """Check that host and guest agree on what is held, and that nobody has complained."""
    assert guest.vm.status is None, guest.vm.error_text()
    assert joined(guest.balloon.device.blocks.runs()) == await pool(guest)
    log = await guest.run("dmesg")
    assert not [line for line in log.splitlines() if TROUBLE.search(line)]


def joined(runs: Any) -> list[Run]:
    """Return runs with neighbours made one, whatever their nodes."""
    merged: list[Run] = []
    for first, count in sorted(runs):
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + count)
        else:
            merged.append((first, count))
    return merged


async def verified(guest: Guest, size_bytes: int) -> None:
    """Fill and read back so much of the guest's memory."""
    result = await guest.memtool(f"fill --bytes {size_bytes} --seed {random.randrange(1 << 30)}")
    assert result["wrong_pages"] == 0


@asynccontextmanager
async def verifying(guest: Guest, size_bytes: int) -> AsyncIterator[None]:
    """Meanwhile, write, compare and free so much memory again and again in the guest."""
    stopped = asyncio.Event()

    async def work() -> None:
        while True:
            await verified(guest, size_bytes)
            if stopped.is_set():
                return

    async with asyncio.TaskGroup() as workers:
        for _ in range(2):
            workers.create_task(work())
        try:
            yield
        finally:
            stopped.set()


async def kill_agent(guest: Guest, signal: int = 9) -> None:
    await guest.run(KILL_AGENT.replace("kill -9", f"kill -{signal}"))


async def sweep(guest: Guest, node: int | None = None) -> Any:
    return await guest.balloon.blocks.sweep(node, 60.0)


async def agent_is_calm(guest: Guest) -> None:
    """Have another agent, if this one takes nothing because its guest was short of memory."""
    await agent_is_ready(guest)
    await eventually(lambda: blocks(guest)["agent"] is not None, "the agent says how it is")
    if blocks(guest)["agent"]["pressure"]:
        sessions = blocks(guest)["counters"]["sessions"]
        await kill_agent(guest, 15)
        await eventually(
            lambda: blocks(guest)["counters"]["sessions"] > sessions, "the next agent is there"
        )
        await agent_is_ready(guest)

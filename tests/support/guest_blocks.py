"""What tests of the agent's blocks in a real guest do and look at."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ballast.balloon.ranges import Run
from ballast.soak.storm import KILL_AGENT
from ballast_images.shell import CommandFailedError
from support.system import Guest, eventually

KPF_HUGE = 17
OUT_OF_MEMORY = "Out of memory"
TROUBLE = re.compile(rf"{OUT_OF_MEMORY}|BUG|Oops|Bad page|WARNING:|corrupt|blocked for more than")


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


async def assert_exact(guest: Guest, *, may_be_short: bool = False) -> None:
    """Check that host and guest agree on what is held, and that nobody has complained.

    Args:
        guest: The guest.
        may_be_short: Its kernel may have killed somebody for want of memory.
    """
    assert guest.vm.status is None, guest.vm.error_text()
    assert joined(guest.balloon.device.blocks.runs()) == await pool(guest)
    log = await guest.run("dmesg")
    lines = [line for line in log.splitlines() if TROUBLE.search(line)]
    assert not [line for line in lines if not (may_be_short and OUT_OF_MEMORY in line)]


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
async def verifying(
    guest: Guest, size_bytes: int, *, may_be_killed: bool = False
) -> AsyncIterator[None]:
    """Meanwhile, write, compare and free so much memory again and again in the guest.

    Args:
        guest: The guest.
        size_bytes: How much each of two processes uses.
        may_be_killed: Its kernel may kill one for want of memory; then another one begins.
    """
    stopped = asyncio.Event()

    async def work() -> None:
        while True:
            try:
                await verified(guest, size_bytes)
            except CommandFailedError as error:
                if not may_be_killed or error.result.status != -signal.SIGKILL:
                    raise
            if stopped.is_set():
                return

    async with asyncio.TaskGroup() as workers:
        for _ in range(2):
            workers.create_task(work())
        try:
            yield
        finally:
            stopped.set()


async def kill_agent(guest: Guest, number: int = 9) -> None:
    await guest.run(KILL_AGENT.replace("kill -9", f"kill -{number}"))


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

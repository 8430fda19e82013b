"""The agent's blocks in a stock guest with two NUMA nodes; the tests run in this order on it.

Each leaves the guest whole. What the agent takes is compared page for page with the host's book:
the kernel marks the pages of its huge page pool.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ballast.balloon.ranges import Run
from ballast.soak.storm import KILL_AGENT
from ballast_images.guest import GuestImage
from support.system import GIB, MIB, Guest, allocated_bytes, booted, eventually, served

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

RAM_BYTES = 2 * GIB
KPF_HUGE = 17
TROUBLE = re.compile(r"Out of memory|BUG|Oops|Bad page|WARNING:|corrupt|blocked for more than")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(qemu: Path, image: GuestImage) -> AsyncIterator[Guest]:
    async with (
        served(agent_blocks=True) as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES, nodes=2) as guest,
    ):
        await agent_is_ready(guest)
        yield guest


async def agent_is_ready(guest: Guest) -> None:
    await eventually(lambda: blocks(guest)["obstacle"] is None, "the agent takes blocks")


def blocks(guest: Guest) -> Any:
    return guest.balloon.status()["blocks"]


def held_bytes(guest: Guest) -> int:
    return guest.balloon.device.blocks.hold_bytes


async def hold(guest: Guest, size_bytes: int) -> None:
    """Have the agent hold so much, and wait until it does."""
    guest.balloon.set_target(RAM_BYTES - size_bytes)
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
    await guest.run(KILL_AGENT.replace("-9", f"-{signal}"))


async def sweep(guest: Guest, node: int | None = None, *, timeout_seconds: float = 60.0) -> Any:
    return await guest.balloon.blocks.sweep(node, timeout_seconds)


async def test_blocks_are_where_both_books_say(guest: Guest) -> None:
    await guest.memtool(f"dirty --bytes {1500 * MIB}")
    before = allocated_bytes(guest.balloon)
    await hold(guest, 1024 * MIB)
    await assert_exact(guest)
    assert allocated_bytes(guest.balloon) < before - 600 * MIB
    status = blocks(guest)
    assert status["hit-rate"]["isolated"] == 1.0
    assert sum(node["held-bytes"] for node in status["nodes"]) == 1024 * MIB

    await hold(guest, 512 * MIB)
    await assert_exact(guest)
    await verified(guest, 1000 * MIB)
    await hold(guest, 0)
    assert await pool(guest) == []
    await verified(guest, 1500 * MIB)


async def test_each_node_has_its_share(guest: Guest) -> None:
    guest.balloon.blocks.set_share(1, 300 * MIB)
    try:
        await hold(guest, 400 * MIB)
        held = [node["held-bytes"] for node in blocks(guest)["nodes"]]
        assert held[1] >= 300 * MIB
        counts = await guest.run(
            "cat /sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
        )
        assert [int(count) * 2 * MIB for count in counts.split()] == held
        await assert_exact(guest)
        done = await sweep(guest, 0)
        assert 0 < done["reported-bytes"] < GIB
    finally:
        guest.balloon.blocks.set_share(1, 0)
    await hold(guest, 0)


async def test_a_sweep_gives_the_host_what_is_free(guest: Guest) -> None:
    await guest.memtool(f"dirty --bytes {1500 * MIB}")
    done = await sweep(guest)
    assert done["reason"] in (
        "only the reserve is left",
        "no more whole blocks of 2 MiB are free",
    )
    assert done["reported-bytes"] > 1400 * MIB
    assert allocated_bytes(guest.balloon) < 500 * MIB
    assert await pool(guest) == []
    assert held_bytes(guest) == blocks(guest)["sweep-bytes"] == 0


async def test_a_sweep_ends_however_busily_the_guest_frees_and_takes(guest: Guest) -> None:
    async with verifying(guest, 200 * MIB):
        for _ in range(5):
            done = await sweep(guest)
            assert done["isolated-blocks"] * 2 * MIB <= RAM_BYTES
    await assert_exact(guest)


async def test_a_guest_that_needs_its_memory_gets_it(guest: Guest) -> None:
    """The process is killed by nobody, and nobody asks the host first."""
    await hold(guest, 1200 * MIB)
    releases = blocks(guest)["counters"]["pressure-releases"]
    await verified(guest, 1400 * MIB)
    await eventually(
        lambda: blocks(guest)["counters"]["pressure-releases"] > releases, "the host is told"
    )
    assert held_bytes(guest) < 700 * MIB
    await assert_exact(guest)
    guest.balloon.set_target(RAM_BYTES)
    await eventually(lambda: held_bytes(guest) == 0, "nothing is held")


async def test_memory_that_goes_offline_during_sweeps(guest: Guest) -> None:
    """The kernel may not replace or dissolve what is under way to the host."""
    numbers = range(2, 16)
    path = "/sys/devices/system/memory/memory"
    storm = "; ".join(
        f"echo offline >{path}{n}/state && {{ n=$((n+1)); echo online >{path}{n}/state; }}"
        for n in numbers
    )
    script = f"n=0; while [ ! -e /tmp/stop-storm ]; do {storm}; done 2>/dev/null; echo $n"
    await guest.run("rm -f /tmp/stop-storm")
    offlined = asyncio.create_task(guest.run(script, timeout_s=200))
    async with verifying(guest, 100 * MIB):
        for _ in range(6):
            await sweep(guest)
            await hold(guest, 200 * MIB)
            await asyncio.sleep(0.3)
            await hold(guest, 0)
        await guest.run("touch /tmp/stop-storm")
    assert int((await offlined).split()[-1]) > 0, "memory did go offline"
    await guest.run(f"for m in {path}*/state; do echo online >$m; done 2>/dev/null || true")
    await assert_exact(guest)


async def kill_at_work(guest: Guest, rng: random.Random, *, with_sweep: bool) -> None:
    """Kill the agent in the middle of something, and wait for the next one."""
    sessions = blocks(guest)["counters"]["sessions"]
    guest.balloon.set_target(RAM_BYTES - rng.randrange(0, 900) * MIB)
    task = asyncio.create_task(sweep(guest, timeout_seconds=3.0)) if with_sweep else None
    await asyncio.sleep(rng.random() * 0.4)
    await kill_agent(guest)
    if task is not None:
        await asyncio.gather(task, return_exceptions=True)
    await eventually(
        lambda: blocks(guest)["counters"]["sessions"] > sessions, "the next agent is there"
    )


async def test_a_killed_agent_is_succeeded_whenever_it_dies(guest: Guest) -> None:
    rng = random.Random(7)
    await hold(guest, 300 * MIB)
    for with_sweep in (False, True):
        # In a sweep next to nothing is left to the guest until the next agent is there.
        async with verifying(guest, 10 * MIB if with_sweep else 150 * MIB):
            for _ in range(4):
                await kill_at_work(guest, rng, with_sweep=with_sweep)
    await agent_is_ready(guest)
    await hold(guest, 500 * MIB)
    await assert_exact(guest)
    await hold(guest, 0)
    assert await pool(guest) == []
    await verified(guest, 1500 * MIB)


async def test_an_agent_that_stops_gives_everything_back(guest: Guest) -> None:
    await hold(guest, 500 * MIB)
    await kill_agent(guest, 15)
    await eventually(lambda: held_bytes(guest) == 0, "the host is told")
    log = await guest.run("cat /var/log/ballast-agent.log")
    assert re.search(r"the guest has 5\d\dM back\nballast-agent: INFO: stopped\n", log)
    await guest.run("! ls /run/ballast-agent/huge")
    guest.balloon.set_target(RAM_BYTES)
    await agent_is_ready(guest)
    await assert_exact(guest)


async def test_a_guest_that_uses_huge_pages_is_left_alone(guest: Guest) -> None:
    nr_hugepages = "/proc/sys/vm/nr_hugepages"
    await guest.run(f"echo 8 >{nr_hugepages}")
    done = await sweep(guest)
    assert "uses huge pages itself" in done["reason"]
    await eventually(lambda: blocks(guest)["obstacle"] is not None, "the agent says why")
    assert (await guest.run(f"cat {nr_hugepages}")).strip() == "8"
    await guest.run(f"echo 0 >{nr_hugepages}")

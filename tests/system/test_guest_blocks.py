"""The agent's blocks in a stock guest with two NUMA nodes; the tests run in this order on it.

Each leaves the guest whole. What the agent takes is compared page for page with the host's book:
the kernel marks the pages of its huge page pool.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ballast_images.guest import GuestImage
from support.daemons import COMMAND
from support.guest_blocks import (
    agent_is_calm,
    agent_is_ready,
    assert_exact,
    blocks,
    held_bytes,
    hold,
    kill_agent,
    pool,
    sweep,
    verified,
    verifying,
)
from support.system import GIB, MIB, Guest, allocated_bytes, booted, eventually, served

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

RAM_BYTES = GIB
DEMAND_BYTES_PER_SECOND = 200 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(qemu: Path, image: GuestImage) -> AsyncIterator[Guest]:
    async with (
        served(agent_blocks=True) as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES, nodes=2) as guest,
    ):
        await agent_is_ready(guest)
        yield guest


async def test_blocks_are_where_both_books_say(guest: Guest) -> None:
    await guest.memtool(f"dirty --bytes {650 * MIB}")
    before = allocated_bytes(guest.balloon)
    await hold(guest, 448 * MIB)
    await assert_exact(guest)
    assert allocated_bytes(guest.balloon) < before - 150 * MIB
    status = blocks(guest)
    assert status["hit-rate"]["isolated"] == 1.0
    assert sum(node["held-bytes"] for node in status["nodes"]) == 448 * MIB

    await hold(guest, 224 * MIB)
    await assert_exact(guest)
    await verified(guest, 200 * MIB)
    await hold(guest, 0)
    assert await pool(guest) == []
    await verified(guest, 300 * MIB)


async def nodes(guest: Guest, *arguments: str) -> Any:
    """Return what `ballast nodes` says."""
    paths = guest.balloon.paths
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "nodes", paths.name, "--json", *arguments),
        env={**os.environ, "BALLAST_RUNTIME_DIR": str(paths.directory.parent)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def test_each_node_has_its_share(guest: Guest) -> None:
    for row in await nodes(guest, "--share", "1=128M"):
        assert row["free-blocks"] * 2 * MIB <= row["free-bytes"] < row["total-bytes"] < GIB // 2
    await hold(guest, 200 * MIB)
    shown = await nodes(guest)
    assert [row["node"] for row in shown] == [0, 1]
    held = [row["held-bytes"] for row in shown]
    assert held == [row["held-bytes"] for row in blocks(guest)["nodes"]]
    assert sum(held) == 200 * MIB
    assert held[1] >= 128 * MIB
    assert [row["share-bytes"] for row in shown] == [0, 128 * MIB]
    counts = await guest.run(
        "cat /sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
    )
    assert [int(count) * 2 * MIB for count in counts.split()] == held
    await assert_exact(guest)

    # A sweep of the other node leaves this one alone.
    first = shown[0]
    done = await sweep(guest, 0)
    assert 0 < done["reported-bytes"] <= first["total-bytes"] - first["held-bytes"]
    await nodes(guest, "--share", "1=0")
    await hold(guest, 0)


async def test_a_sweep_gives_the_host_what_is_free(guest: Guest) -> None:
    await guest.memtool(f"dirty --bytes {650 * MIB}")
    await agent_is_calm(guest)
    done = await sweep(guest)
    assert done["reason"] in (
        "only the reserve is left",
        "no more whole blocks of 2 MiB are free",
    )
    assert done["reported-bytes"] > 550 * MIB
    assert allocated_bytes(guest.balloon) < 450 * MIB
    assert await pool(guest) == []
    assert held_bytes(guest) == blocks(guest)["sweep-bytes"] == 0


async def test_a_sweep_ends_however_busily_the_guest_frees_and_takes(guest: Guest) -> None:
    """A block is taken once in a sweep, though the guest frees it again and again."""
    async with verifying(guest, 60 * MIB):
        for _ in range(4):
            await agent_is_calm(guest)
            done = await sweep(guest)
            print(done)
            assert 0 < done["isolated-blocks"] * 2 * MIB <= RAM_BYTES
    rates = blocks(guest)["hit-rate"]
    print(f"hit rate: {rates}")
    assert 0 < rates["isolated"] <= 1
    assert 0 < rates["freed"] <= 1
    await assert_exact(guest)


async def test_a_guest_that_needs_its_memory_gets_it(guest: Guest) -> None:
    """Nobody is killed for it, and nobody asks the host first."""
    await hold(guest, 512 * MIB)
    status = blocks(guest)
    releases = status["counters"]["pressure-releases"]
    alarm = status["agent"]["reserve-bytes"] // 2
    options = f"--bytes {600 * MIB} --rate {DEMAND_BYTES_PER_SECOND} --alarm {alarm}"
    got = await guest.memtool(f"demand {options}")
    print(
        f"{600 / got['seconds']:.0f} MiB/s were got, no MiB in more than "
        f"{got['longest_step_seconds'] * 1000:.0f} ms; "
        f"given back after {(got['release_seconds'] or 0.0) * 1000:.0f} ms"
    )
    assert got["verified_bytes"] == 600 * MIB
    assert await guest.vmstat("oom_kill") == 0
    await eventually(
        lambda: blocks(guest)["counters"]["pressure-releases"] > releases, "the host is told"
    )
    assert held_bytes(guest) < 384 * MIB
    await assert_exact(guest)
    guest.balloon.set_target(RAM_BYTES)
    await eventually(lambda: held_bytes(guest) == 0, "nothing is held")


async def kill_at_work(guest: Guest, rng: random.Random, *, with_sweep: bool) -> None:
    """Kill the agent in the middle of something, and wait for the next one."""
    sessions = blocks(guest)["counters"]["sessions"]
    guest.balloon.set_target(RAM_BYTES - rng.randrange(0, 400) * MIB)
    task = asyncio.create_task(sweep(guest)) if with_sweep else None
    await asyncio.sleep(rng.random() * 0.4)
    await kill_agent(guest)
    if task is not None:
        task.cancel()
    await eventually(
        lambda: blocks(guest)["counters"]["sessions"] > sessions, "the next agent is there"
    )


async def test_a_killed_agent_is_succeeded_whenever_it_dies(guest: Guest) -> None:
    rng = random.Random(7)
    await hold(guest, 150 * MIB)
    for with_sweep in (False, True):
        # In a sweep next to nothing is left to the guest until the next agent is there.
        async with verifying(guest, 5 * MIB if with_sweep else 30 * MIB):
            for _ in range(2):
                await kill_at_work(guest, rng, with_sweep=with_sweep)
    await agent_is_calm(guest)
    await hold(guest, 250 * MIB)
    await assert_exact(guest)
    await hold(guest, 0)
    assert await pool(guest) == []
    await verified(guest, 150 * MIB)


async def test_an_agent_that_stops_gives_everything_back(guest: Guest) -> None:
    await hold(guest, 250 * MIB)
    await kill_agent(guest, 15)
    await eventually(lambda: held_bytes(guest) == 0, "the host is told")
    log = "/var/log/ballast-agent.log"
    await guest.run(f"until grep -q 'INFO: stopped' {log}; do sleep 0.1; done")
    said = await guest.run(f"cat {log}")
    assert re.search(r"the guest has 250M back\nballast-agent: INFO: stopped\n", said)
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

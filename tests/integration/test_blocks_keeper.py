"""A worker is killed while agents hold blocks: its successor, as a process, goes on with them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_protocol.guest import HelloRequest, MessageKind
from ballast_protocol.guest_blocks import BLOCK_BYTES, PAGES_PER_BLOCK
from support.blocks import span
from support.daemons import (
    PATIENCE_SECONDS,
    ballast_json,
    daemon,
    eventually,
    keeper_status,
    status_with,
)
from support.driver import PAGE_SIZE, RamBlock
from support.live_agent import LiveAgent
from support.machine import Machine, machine_at
from support.scripted_agent import ScriptedAgent, scripted_agent

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]

RAM_BYTES = 1 << 30
WANTED_BLOCKS, GIVEN_BLOCKS = 6, 2
AGENTS = ("silent", "idle", "told", "gone")


@asynccontextmanager
async def machine(paths: VmPaths) -> AsyncIterator[Machine]:
    async with machine_at(paths.vhost_user, blocks=(RamBlock(0, RAM_BYTES),)) as machine:
        await machine.start()
        await machine.config()
        yield machine


async def ask_for(paths: VmPaths, blocks: int) -> None:
    """Want so many blocks of a guest."""
    async with qmp.connect(paths.qmp) as client:
        await client.execute("balloon", {"value": RAM_BYTES - blocks * BLOCK_BYTES})


async def agent_is_known(paths: VmPaths) -> None:
    """Wait until the agent is to be asked first."""
    async with qmp.connect(paths.qmp) as client, asyncio.timeout(PATIENCE_SECONDS):
        obstacle: object = ""
        while obstacle is not None:
            status: Any = await client.query("ballast-status")
            obstacle = status["blocks"]["obstacle"]


# An agent that gives no more


@asynccontextmanager
async def half_done(paths: VmPaths) -> AsyncIterator[tuple[Machine, ScriptedAgent]]:
    """A guest that is asked for six blocks, of which its agent has given two."""
    async with machine(paths) as guest, scripted_agent(paths.agent) as agent:
        await agent.introduce()
        await ask_for(paths, WANTED_BLOCKS)
        await agent.goal_of(WANTED_BLOCKS * BLOCK_BYTES)
        await agent.report(span(4, GIVEN_BLOCKS))
        assert (await guest.config()).num_pages == 0
        yield guest, agent


async def goes_on(name: str, agent: ScriptedAgent) -> None:
    """Have an agent do what its name says when the next worker has come."""
    await agent.hear(HelloRequest)
    if name in ("idle", "told"):
        await agent.introduce(span(4, GIVEN_BLOCKS))
    if name == "told":
        await agent.report(span(4, GIVEN_BLOCKS))
    if name == "gone":
        agent.guest.writer.transport.abort()


async def test_the_kernel_is_asked_for_what_an_agent_does_not_give_to_a_successor(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(daemon(tmp_path, "serve", *AGENTS, "--keeper", "parent"))
        first = await keeper_status(tmp_path, AGENTS[0])
        guests = {
            name: await stack.enter_async_context(half_done(VmPaths(name, tmp_path)))
            for name in AGENTS
        }
        os.kill(first["worker-pid"], signal.SIGKILL)
        await asyncio.gather(*(goes_on(name, agent) for name, (_, agent) in guests.items()))
        for name, (guest, _) in guests.items():
            # What an agent claims to hold and does not report again is presumed for a while only.
            given = 0 if name == "idle" else GIVEN_BLOCKS
            wanted = (WANTED_BLOCKS - given) * BLOCK_BYTES // PAGE_SIZE
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (asked := (await guest.config()).num_pages) != wanted:
                    assert asked < wanted, name
                    await asyncio.sleep(0.05)


# The real one


async def test_reports_that_died_with_their_worker_are_made_again_at_once(tmp_path: Path) -> None:
    """The agent reads the dead worker's last word and the next one's first at once."""
    paths = VmPaths("web", tmp_path)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(daemon(tmp_path, "serve", "web", "--keeper", "parent"))
        first = await keeper_status(tmp_path)
        guest = await stack.enter_async_context(machine(paths))
        agent = stack.enter_context(closing(LiveAgent(paths.agent, blocks=400)))
        known = asyncio.create_task(agent_is_known(paths))
        await agent.run(known.done)
        await ask_for(paths, 200)
        await agent.run(lambda: agent.isolated > 0)
        # Four reports, of which two are under way at a time.
        agent.write(upto=MessageKind.BLOCKS_REPORT)
        await eventually(agent.has_mail, "the first report is answered")
        os.kill(first["worker-pid"], signal.SIGSTOP)
        agent.write()
        os.kill(first["worker-pid"], signal.SIGKILL)
        await status_with(tmp_path, restarts=1)

        size = str(RAM_BYTES - 200 * BLOCK_BYTES)
        waiting = asyncio.create_task(ballast_json(tmp_path, "set", "web", size, "--wait"))
        await agent.run(waiting.done)
        assert (await waiting)["result"] == "reached"
        assert agent.isolated == 200
        assert (await guest.config()).num_pages == 0
        async with qmp.connect(paths.qmp) as client:
            ledger: Any = await client.query("ballast-ledger")
        assert sum(count for _, count in ledger["block-runs"]) == 200 * PAGES_PER_BLOCK

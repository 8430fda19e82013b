"""An agent that hands over the blocks that a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ballast_protocol.guest import ABILITY_BLOCKS, HelloRequest, Message, Welcome
from ballast_protocol.guest_blocks import (
    BlockCounters,
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Holding,
    HoldingAck,
    PageRange,
    Purpose,
)
from support.agent_peer import Guest
from support.guest_messages import HELLO, report

Wanted = TypeVar("Wanted", bound=Message)

BLOCKS_HELLO = replace(
    HELLO, protocol_versions=(1, 2), abilities=(*HELLO.abilities, ABILITY_BLOCKS), hello_id=1
)

STATUS = BlocksStatus(
    nodes=(),
    goal_bytes=0,
    settled=False,
    reserve_bytes=0,
    available_bytes=0,
    pressure=False,
    counters=BlockCounters(),
)


class ScriptedAgent:
    """One agent's conversation.

    Attributes:
        guest: Its end of the channel.
        session: The number of its session.
        goal_bytes: What it is to hold; -1 before it was told.
    """

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.session = 0
        self.goal_bytes = -1
        self._last_id = 0

    async def introduce(self, *held: PageRange, boot_id: str = "a") -> None:
        """Begin a session in which the agent holds these blocks, until its goal has come."""
        self._last_id += 1
        hello = replace(BLOCKS_HELLO, boot_id=boot_id, hello_id=self._last_id)
        self.guest.say(hello)
        welcome = await self.hear(Welcome)
        while welcome.hello_id != self._last_id:
            welcome = await self.hear(Welcome)
        assert welcome.session is not None
        self.session = welcome.session
        self.guest.say(report())
        self.guest.say(Holding(self.session, held, last=True), 1)
        await self.hear(HoldingAck)
        await self.goal()

    async def hear(self, kind: type[Wanted]) -> Wanted:
        """Return the next message of a kind, whatever comes before it."""
        while True:
            _, message = await self.guest.hear()
            if isinstance(message, kind):
                return message

    async def goal(self) -> int:
        """Wait for the next goal and return it."""
        told = await self.hear(BlocksGoal)
        self.goal_bytes = sum(goal.size_bytes for goal in told.goals)
        return self.goal_bytes

    async def goal_of(self, size_bytes: int) -> None:
        """Wait until the goal is this."""
        while self.goal_bytes != size_bytes:
            await self.goal()

    async def report(self, *spans: PageRange, purpose: Purpose = Purpose.HOLD) -> BlocksAck:
        """Hand blocks over and return the acknowledgement."""
        self.guest.say(BlocksReport(self.session, purpose, spans), 2)
        return await self.hear(BlocksAck)

    def release(self, *spans: PageRange) -> None:
        """Let go of blocks."""
        self.guest.say(BlocksReleased(self.session, spans))

    def settle(self, **changes: object) -> None:
        """Say that nothing more is to be had for the present goal."""
        status = replace(STATUS, goal_bytes=self.goal_bytes, settled=True)
        self.guest.say(replace(status, **changes))  # type: ignore[arg-type]


@asynccontextmanager
async def scripted_agent(path: Path) -> AsyncIterator[ScriptedAgent]:
    """Connect an agent to a link; it has not introduced itself yet."""
    guest = Guest(*await asyncio.open_unix_connection(path))
    try:
        agent = ScriptedAgent(guest)
        await agent.hear(HelloRequest)
        yield agent
    finally:
        guest.writer.transport.abort()

"""A vhost-user back-end that is killed at any line of its code: QEMU and the guest go on.

What is looked at: each request is answered once, each buffer is returned once, the books hold
exactly the driver's pages, `actual` is what the driver wrote, no page is lost that the driver has
not handed over, and QEMU is told of no config change at a moment that would kill it.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.balloon.features import DEFAULT_FEATURES
from ballast.balloon.ledger import Ledger
from ballast.daemon.lasting import Lasting
from ballast.streams.fdstore import VmStore
from ballast.transport.vhost_user.server import VhostUserServer
from ballast_protocol.vhost_user.message import ProtocolFeature
from ballast_protocol.virtio.balloon import BalloonFeature
from support.backend import Listener
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.frontend import QEMU_PROTOCOL_FEATURES, Frontend
from support.machine import FREE, RAM_BYTES, Machine, plugged_in
from support.mortal import NEVER, Mortal, Orders, mortal

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]

PATTERN = b"\xa5" * PAGE_SIZE
EXTRA = RamBlock(1 << 32, 1 << 20)
KILLS = 20
"""In each test that goes through a step again and again; in all they are some hundred."""

NOTHING = ProtocolFeature(0)

WITHOUT = {
    "all": NOTHING,
    "no-reply-ack": ProtocolFeature.REPLY_ACK,
    "no-slots": ProtocolFeature.CONFIGURE_MEM_SLOTS,
}
"""What front-ends lack."""


async def serve(store: VmStore, orders: Orders) -> None:
    """Be a worker: serve one balloon, as the daemon does it."""
    lasting, listener = Lasting(store), Listener()
    device = BalloonDevice(
        listener,
        balloon_features=DEFAULT_FEATURES | BalloonFeature.FREE_PAGE_HINT,
        ledger=Ledger(lasting.chunks),
        cells=lasting.state.cells,
    )

    def ask() -> None:
        device.set_target(max(device.ram_bytes - orders.target_pages * PAGE_SIZE, 1))

    server = VhostUserServer(device, store=store, state=lasting.state)
    listener.transport = server
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ask)
    await server.start()
    store.drop_rest()
    if device.ram_bytes:
        ask()


@dataclass
class World:
    """A guest on a balloon whose workers die.

    Attributes:
        workers: They.
        machine: The guest.
        held: The pages that its driver has given up.
        lost: Those that it does not count on: given up or reported, and not written since.
        choose: What is left to chance.
    """

    workers: Mortal
    machine: Machine
    held: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    async def give(self, pages: range) -> None:
        """Inflate, and say so."""
        self.held |= set(pages)
        self.lost |= set(pages)
        await self.machine.inflate(*reversed(pages))
        await self.machine.set_actual(len(self.held))

    async def take(self, pages: range) -> None:
        """Deflate, use the pages again, and say so."""
        await self.machine.deflate(*pages)
        for page in pages:
            self.machine.ram.write(page * PAGE_SIZE, PATTERN)
        self.held -= set(pages)
        self.lost -= set(pages)
        await self.machine.set_actual(len(self.held))

    async def report(self, pages: range) -> None:
        """Report free pages, and use them again."""
        await self.machine.report(pages[0], len(pages))
        for page in pages:
            self.machine.ram.write(page * PAGE_SIZE, PATTERN)

    async def obey(self) -> None:
        """Be asked for another size, and see it in the config space."""
        pages = self.workers.orders.target_pages + 1
        self.workers.set_target(pages)
        async with asyncio.timeout(60):
            while (await self.machine.config()).num_pages != pages:
                await self.machine.frontend.config_changed()

    async def reset(self) -> None:
        """Have a new driver begin, which has given up nothing."""
        self.held.clear()
        await self.machine.reset()
        self.machine.offer_statistics(1 << 20)

    async def check(self) -> None:
        """See that everything is as it has to be."""
        config = await self.machine.config()
        self.workers.check()
        assert self.machine.frontend.crash is None
        assert self.workers.ledger == self.held
        assert config.actual == len(self.held)
        assert all(
            self.machine.ram.read(page * PAGE_SIZE, PAGE_SIZE) == PATTERN
            for page in set(FREE) - self.lost
        )


@asynccontextmanager
async def world(
    life: Callable[[], int] = lambda: NEVER, lacks: ProtocolFeature = NOTHING
) -> AsyncIterator[World]:
    """Let a guest that is just started meet a worker that may be killed at any moment."""
    with GuestRam.of(RamBlock(0, RAM_BYTES)) as ram:
        for page in FREE:
            ram.write(page * PAGE_SIZE, PATTERN)
        async with mortal(serve, life) as (workers, sock), Frontend(sock) as frontend:
            machine = await plugged_in(frontend, ram, accept=QEMU_PROTOCOL_FEATURES & ~lacks)
            await machine.start()
            machine.offer_statistics(1 << 20)
            yield World(workers, machine)


Step = Callable[[World], Awaitable[None]]


async def balloon(here: World) -> None:
    await here.give(FREE[8:24])
    await here.take(FREE[8:16])
    await here.take(FREE[16:24])


async def report(here: World) -> None:
    await here.report(FREE[64:128])
    here.machine.offer_statistics(2 << 20)


async def pause(here: World) -> None:
    bases = await here.machine.pause()
    await here.machine.resume()
    assert bases[0] == here.machine.frontend.bases[0]


async def memory(here: World) -> None:
    frontend, ram = here.machine.frontend, here.machine.ram
    block = ram.add(EXTRA)
    await frontend.share_memory(ram)
    await here.give(FREE[30:31])
    ram.remove(block)
    await frontend.share_memory(ram)
    await here.take(FREE[30:31])


async def reset(here: World) -> None:
    await here.give(FREE[8:24])
    await here.reset()


async def replug(here: World) -> None:
    """The device is unplugged and plugged in again on the same connection."""
    await here.machine.pause()
    await here.machine.frontend.handshake(here.machine.frontend.protocol_features)
    for queue in here.machine.queues.values():
        queue.reset()
    here.held.clear()
    await here.machine.start()
    here.machine.offer_statistics(1 << 20)


async def obey(here: World) -> None:
    await here.obey()


STEPS: list[Step] = [balloon, report, pause, memory, obey, reset, replug]


@pytest.mark.parametrize("lacks", WITHOUT)
async def test_killed_at_random_through_a_whole_life(lacks: str) -> None:
    choose = random.Random(lacks)
    async with world(lambda: choose.randrange(1, 12000), WITHOUT[lacks]) as here:
        await here.give(FREE[:8])
        for step in STEPS * 2:
            await step(here)
            await here.check()
        assert here.workers.deaths >= 5


@pytest.mark.parametrize("step", STEPS)
async def test_killed_in_the_middle_of_a_step(step: Step) -> None:
    async with world() as here:
        await here.give(FREE[:8])
        before = here.workers.lines
        await step(here)
        count = here.workers.lines - before
        for lines in range(1, count, max(count // KILLS, 1)):
            here.workers.arm(lines)
            await step(here)
            await here.check()
        assert here.workers.deaths > 0

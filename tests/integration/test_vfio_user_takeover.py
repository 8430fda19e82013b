"""A vfio-user server that is killed at any line of its code: the client and the guest go on.

What is looked at: each request is answered once, each buffer is returned once, the books hold
exactly the driver's pages, `actual` is what the driver wrote, and no page is lost that the driver
has not handed over.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.balloon.ledger import Ledger
from ballast.daemon.lasting import Lasting
from ballast.streams.fdstore import VmStore
from ballast.transport.vfio_user.server import VfioUserServer
from ballast.virtio_pci.layout import Variant
from ballast_protocol.virtio.balloon import BalloonQueue
from support.backend import Listener, until
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.fds import memory_file
from support.machine import FREE, RAM_BYTES
from support.mortal import NEVER, Mortal, Orders, Serve, mortal
from support.vfio_client import Range, VfioClient
from support.vfio_machine import VfioMachine

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]

HALF = RAM_BYTES // 2
PATTERN = b"\xa5" * PAGE_SIZE
INFLATE, DEFLATE = BalloonQueue.INFLATE, BalloonQueue.DEFLATE


def worker(variant: Variant) -> Serve:
    """Return what a worker does: serve one balloon, as the daemon does it."""

    async def serve(store: VmStore, orders: Orders) -> None:
        lasting, listener = Lasting(store), Listener()
        device = BalloonDevice(listener, ledger=Ledger(lasting.chunks), cells=lasting.state.cells)

        def ask() -> None:
            device.set_target(RAM_BYTES - orders.target_pages * PAGE_SIZE)

        server = VfioUserServer(device, variant=variant, store=store, state=lasting.state)
        listener.transport = server
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ask)
        ask()
        await server.start()
        store.drop_rest()

    return serve


LIFE_LINES = 12_000
"""The most that a worker gets done; to take over it needs a quarter of that."""

KILLS = 8
"""For each step; set it higher to see every line."""


@dataclass
class World:
    """A guest on a balloon whose workers die.

    Attributes:
        workers: They.
        machine: The guest.
        held: The pages that its driver has given up.
        lost: Those that it does not count on: given up or reported, and not written since.
    """

    workers: Mortal
    machine: VfioMachine
    held: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    async def plug_in(self) -> None:
        """Do what QEMU does when it starts."""
        ram = self.machine.ram
        for page in FREE:
            ram.write(page * PAGE_SIZE, PATTERN)
        await self.machine.client.realize(ram)
        self.machine.find_structures()

    async def start(self) -> None:
        """Do what a driver does at its probe, which has given up nothing."""
        await self.machine.start()
        self.held.clear()
        await self.machine.offer_statistics(1 << 20)

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

    async def obey(self, pages: int) -> None:
        """Be asked for another size, and see it in the config space."""
        self.workers.set_target(pages)
        found = await self.machine.config()
        while found.num_pages != pages:
            await asyncio.sleep(0.001)
            found = await self.machine.config()

    async def shuffle(self) -> None:
        """Have all memory taken away and given back in other pieces, and whole again."""
        (whole,) = self.machine.client.ranges
        low, high = Range(0, HALF, 0, whole.fd), Range(HALF, RAM_BYTES - HALF, HALF, whole.fd)
        await self.machine.client.shuffle(low, high)

    async def reboot(self) -> None:
        """Reset the machine, and start a new driver."""
        await self.machine.client.reset()
        await self.start()

    async def check(self) -> None:
        """See that everything is as it has to be."""
        self.workers.check()
        assert self.machine.client.error is None
        assert self.workers.ledger == self.held
        assert (await self.machine.config()).actual == len(self.held)
        assert all(
            self.machine.ram.read(page * PAGE_SIZE, PAGE_SIZE) == PATTERN
            for page in set(FREE) - self.lost
        )


@asynccontextmanager
async def world(variant: Variant, life: Callable[[], int] = lambda: NEVER) -> AsyncIterator[World]:
    """Let a client and a guest that is not there yet meet a worker that may be killed at once."""
    with GuestRam.of(RamBlock(0, RAM_BYTES)) as ram:
        async with mortal(worker(variant), life) as (workers, sock), VfioClient(sock) as client:
            yield World(workers, VfioMachine(client, ram))


Step = Callable[[World], Awaitable[None]]


async def balloon(world: World) -> None:
    await world.give(FREE[8:24])
    await world.take(FREE[8:16])
    await world.take(FREE[16:24])


async def report(world: World) -> None:
    await world.report(FREE[64:128])


async def obey(world: World) -> None:
    await world.obey(world.workers.orders.target_pages + 1)


async def shuffle(world: World) -> None:
    await world.shuffle()
    await world.give(FREE[30:31])
    await world.take(FREE[30:31])


async def reboot(world: World) -> None:
    await world.give(FREE[8:24])
    await world.reboot()


STEPS: list[Step] = [balloon, report, obey, shuffle, reboot]


@pytest.mark.parametrize("variant", Variant)
async def test_killed_at_random_through_a_whole_life(variant: Variant) -> None:
    choose = random.Random(variant.value)
    async with world(variant, lambda: choose.randrange(1, LIFE_LINES)) as here:
        await here.plug_in()
        await here.start()
        await here.give(FREE[:8])
        for step in STEPS:
            await step(here)
            await here.check()
        assert here.workers.deaths >= 5


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("variant", Variant)
async def test_killed_in_the_middle_of_a_step(variant: Variant, step: Step) -> None:
    async with world(variant) as here:
        await here.plug_in()
        await here.start()
        await here.give(FREE[:8])
        before = here.workers.lines
        await step(here)
        count = here.workers.lines - before
        for lines in range(1, count, max(count // KILLS, 1)):
            here.workers.arm(lines)
            await step(here)
            await here.check()
        assert here.workers.deaths > 0


# What cannot be taken over


@pytest.mark.parametrize("what", ["memory.0", "irq.2.1", "outbox", "page", "state", "ledger"])
async def test_what_is_missing_or_spoilt_is_refused_and_left_as_it_is(what: str) -> None:
    async with world(Variant.MSIX_MAPPED) as here:
        await here.plug_in()
        await here.start()
        await here.give(FREE[:8])
        workers, name = here.workers, f"vm/{what}"
        true = workers.held.pop(name)
        if what in ("state", "ledger"):
            workers.held[name] = memory_file(PAGE_SIZE)
        workers.kill()
        await until(lambda: workers.failure is not None)
        assert workers.deaths == 1
        if name in workers.held:
            os.close(workers.held[name])
        # Nothing has been changed: a version that understands it can go on.
        workers.held[name], workers.failure = true, None
        workers.begin()
        await here.give(FREE[8:16])
        await here.check()

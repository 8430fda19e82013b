"""A QEMU-like front-end together with a guest's RAM and its balloon driver's queues."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ballast_protocol.vhost_user.message import ProtocolFeature
from ballast_protocol.virtio.balloon import (
    BalloonConfig,
    BalloonQueue,
    pack_statistics,
    queue_order,
)
from ballast_protocol.virtio.ring import UsedElement
from support.driver import PAGE_SIZE, DriverQueue, GuestRam, RamBlock, Segment
from support.frontend import QEMU_PROTOCOL_FEATURES, Frontend
from support.pages import pfn_array

RAM_BYTES = 16 << 20
PAGES = RAM_BYTES // PAGE_SIZE
FREE = range(PAGES - 512, PAGES)
"""Pages that no ring and no buffer uses."""


@dataclass
class Machine:
    """One guest.

    Attributes:
        frontend: Its QEMU.
        ram: Its memory.
        features: What its driver accepted.
        queues: Its balloon driver's queues, by what they carry.
    """

    frontend: Frontend
    ram: GuestRam
    features: int
    queues: dict[BalloonQueue, DriverQueue]

    def index(self, role: BalloonQueue) -> int:
        return list(self.queues).index(role)

    async def start(self) -> None:
        """Start with rings as they are: what a driver does that begins anew."""
        await self.frontend.start(self.ram, dict(enumerate(self.queues.values())), self.features)

    async def pause(self) -> dict[int, int]:
        return await self.frontend.stop()

    async def resume(self) -> None:
        """Go on where `pause` stopped."""
        queues = dict(enumerate(self.queues.values()))
        bases = dict(self.frontend.bases)
        await self.frontend.start(self.ram, queues, self.features, bases=bases)

    async def reset(self) -> None:
        """Stop, and have a new driver begin with the same rings in the same places."""
        await self.frontend.stop()
        for queue in self.queues.values():
            queue.reset()
        await self.start()

    async def done(self, role: BalloonQueue) -> list[UsedElement]:
        """Kick a queue and wait until the device has returned all of its buffers."""
        driver, index = self.queues[role], self.index(role)
        found: list[UsedElement] = []
        if driver.should_kick():
            self.frontend.kick(index)
        found += driver.collect()
        while driver.in_flight:
            await self.frontend.called(index)
            found += driver.collect()
        return found

    async def inflate(self, *pfns: int) -> None:
        self.queues[BalloonQueue.INFLATE].add_out(pfn_array(pfns))
        await self.done(BalloonQueue.INFLATE)

    async def deflate(self, *pfns: int) -> None:
        self.queues[BalloonQueue.DEFLATE].add_out(pfn_array(pfns))
        await self.done(BalloonQueue.DEFLATE)

    async def report(self, first: int, count: int) -> None:
        into = [Segment(first * PAGE_SIZE, count * PAGE_SIZE)]
        self.queues[BalloonQueue.REPORTING].add(into=into, indirect=True)
        await self.done(BalloonQueue.REPORTING)

    def offer_statistics(self, free_bytes: int) -> None:
        """Fill the statistics buffer; the device keeps it."""
        driver = self.queues[BalloonQueue.STATS]
        driver.collect()
        driver.add_out(pack_statistics([(4, free_bytes)]))
        if driver.should_kick():
            self.frontend.kick(self.index(BalloonQueue.STATS))

    async def config(self) -> BalloonConfig:
        """Read the config space; afterwards everything sent before has been served."""
        return BalloonConfig.unpack(await self.frontend.read_config())

    async def set_actual(self, pages: int) -> None:
        """Do what the driver does after inflating or deflating."""
        config = await self.config()
        await self.frontend.write_config(
            BalloonConfig(config.num_pages, pages, config.free_page_hint_cmd_id).pack()
        )


@asynccontextmanager
async def machine_at(
    path: Path,
    *,
    accept: ProtocolFeature = QEMU_PROTOCOL_FEATURES,
    features: int | None = None,
    blocks: tuple[RamBlock, ...] = (RamBlock(0, RAM_BYTES),),
) -> AsyncIterator[Machine]:
    """Connect a machine, handshake done, to the back-end at `path`; nothing runs yet.

    Args:
        path: Where the back-end listens.
        accept: The protocol features that the front-end knows.
        features: What the driver accepts; all that is offered if None.
        blocks: The guest's memory.
    """
    with GuestRam.of(*blocks) as ram:
        async with await Frontend.connect(path) as frontend:
            yield await plugged_in(frontend, ram, accept=accept, features=features)


async def plugged_in(
    frontend: Frontend,
    ram: GuestRam,
    *,
    accept: ProtocolFeature = QEMU_PROTOCOL_FEATURES,
    features: int | None = None,
) -> Machine:
    """Do the handshake, and return a machine with this memory of which nothing runs yet."""
    await frontend.handshake(accept)
    wanted = frontend.features_offered & ~(1 << 30) if features is None else features
    event_idx = bool(wanted & 1 << 29)
    queues = {
        role: DriverQueue(ram, 128, event_idx=event_idx, slot_size=2048)
        for role in queue_order(wanted)
    }
    return Machine(frontend, ram, wanted, queues)

"""A real QEMU whose balloon's worker is killed at any line of its code, again and again.

QEMU is in the middle of a request then, or of half a notification with its global lock held, and
must notice nothing but that it takes longer.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.balloon.ledger import Ledger
from ballast.daemon.config import Transport
from ballast.daemon.lasting import Lasting
from ballast.daemon.qemu_args import balloon_arguments
from ballast.streams.fdstore import VmStore
from ballast.transport.vfio_user.server import VfioUserServer
from ballast.transport.vhost_user.server import VhostUserServer
from ballast.virtio_pci.layout import Variant
from support.backend import Listener
from support.driver import PAGE_SIZE
from support.mortal import NEVER, Mortal, Orders, Serve, mortal_at
from support.qtest import Qtest, machine_arguments, running_qtest
from support.system import MIB, eventually
from support.virtio_pci import BalloonDriver, VirtioPci

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 256 * MIB
MAX_PAGES = 600


def worker(transport: Transport) -> Serve:
    """Return what a worker does: serve one balloon, as the daemon does it."""

    async def serve(store: VmStore, orders: Orders) -> None:
        lasting, listener = Lasting(store), Listener()
        cells = lasting.state.cells
        device = BalloonDevice(
            listener, ram_bytes=RAM_BYTES, ledger=Ledger(lasting.chunks), cells=cells
        )

        def ask() -> None:
            device.set_target(RAM_BYTES - orders.target_pages * PAGE_SIZE)

        server: VhostUserServer | VfioUserServer
        if transport == "vhost-user":
            server = VhostUserServer(device, store=store, state=lasting.state)
        else:
            variant = Variant.MSIX_MAPPED
            server = VfioUserServer(device, variant=variant, store=store, state=lasting.state)
        listener.transport = server
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ask)
        await server.start()
        store.drop_rest()
        ask()

    return serve


@dataclass
class Lab:
    """A QEMU without a guest, a driver that the test plays, and workers that die."""

    workers: Mortal
    qtest: Qtest
    driver: BalloonDriver

    async def settled(self, pages: int) -> None:
        """Ask for a size, obey, and see that books and driver agree."""
        self.workers.set_target(pages)
        async with self.driver.obeying():
            await eventually(
                lambda: self.workers.failure is not None or len(self.driver.given) == pages,
                f"{pages} pages are given up",
            )
        await self.qtest.assert_alive()
        self.workers.check()
        assert self.workers.ledger == set(self.driver.given)


@asynccontextmanager
async def lab(qemu: Path, transport: Transport, life: Callable[[], int]) -> AsyncIterator[Lab]:
    """Start a QEMU, whose device is plugged in over several dead workers."""
    with tempfile.TemporaryDirectory(prefix="bal-") as directory:
        path = Path(directory) / "s"
        arguments = (*machine_arguments(RAM_BYTES), *balloon_arguments(path, transport=transport))
        async with (
            mortal_at(path, worker(transport), life) as workers,
            running_qtest(qemu, *arguments) as qtest,
        ):
            with qtest.ram() as ram:
                yield Lab(workers, qtest, BalloonDriver(await VirtioPci.find(qtest), ram))


async def test_qemu_does_not_notice_that_workers_die(qemu: Path, transport: Transport) -> None:
    """Targets, pauses and machine resets, with a worker killed every few thousand lines."""
    choose = random.Random(1)
    async with lab(qemu, transport, lambda: choose.randrange(1, 20000)) as here:
        driver, qmp = here.driver, here.qtest.qmp
        for _ in range(4):
            await driver.start()
            for _ in range(4):
                await here.settled(choose.randrange(1, MAX_PAGES))
                here.workers.set_target(choose.randrange(1, MAX_PAGES))
                await qmp.execute("stop")
                await asyncio.sleep(choose.uniform(0, 0.01))
                await qmp.execute("cont")
            with qmp.listener("RESET") as events:
                await qmp.execute("system_reset")
                await events.get()
            here.driver = driver = BalloonDriver(
                await VirtioPci.find(here.qtest), driver.ram, driver.features
            )
        await driver.start()
        await here.settled(MAX_PAGES)
        assert here.workers.deaths >= 20


async def test_half_a_notification_is_finished_by_the_next_worker(qemu: Path) -> None:
    """A worker is killed at each line of the way of a new target to the driver."""
    async with lab(qemu, "vhost-user", lambda: NEVER) as here:
        await here.driver.start()
        await here.settled(1)
        before = here.workers.lines
        await here.settled(2)
        count = here.workers.lines - before
        for number, lines in enumerate(range(1, count, max(count // 40, 1))):
            here.workers.arm(lines)
            await here.settled(1 + number % 2)
        assert here.workers.deaths >= 20

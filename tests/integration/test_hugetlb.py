"""Guest memory on hugetlbfs under workers that die: parts of huge pages are collected all the same.

The host has no huge page to spare when a worker takes over, as if another guest had taken what this
one gave back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.balloon.ledger import Ledger
from ballast.daemon.config import Transport
from ballast.daemon.lasting import Lasting
from ballast.streams.fdstore import VmStore
from ballast.transport.vfio_user.server import VfioUserServer
from ballast.transport.vhost_user.server import VhostUserServer
from support.backend import Listener
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.frontend import Frontend
from support.hugetlb import HUGE_PAGE, available_huge_pages, huge_pages, none_to_spare
from support.machine import RAM_BYTES, Machine, plugged_in
from support.mortal import Mortal, Orders, Serve, mortal
from support.pages import MarkedPages
from support.vfio_client import Range, VfioClient
from support.vfio_machine import VfioMachine

# Another test may have the host's pool for as long as a guest runs.
pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio]

PARTS = HUGE_PAGE // PAGE_SIZE
FIRST, SECOND, THIRD = (
    range(number * PARTS, (number + 1) * PARTS) for number in range(RAM_BYTES // HUGE_PAGE)[-3:]
)
"""The last huge pages of RAM, page for page."""

CUT = 5 << 20
"""Where low memory is cut in the middle of a huge page, as by a BIOS; no ring reaches so far."""


def worker(transport: Transport) -> Serve:
    """Return what a worker does: serve one balloon, as the daemon does it."""

    async def serve(store: VmStore, _orders: Orders) -> None:
        lasting, listener = Lasting(store), Listener()
        device = BalloonDevice(listener, ledger=Ledger(lasting.chunks), cells=lasting.state.cells)
        server = (VfioUserServer if transport == "vfio-user" else VhostUserServer)(
            device, store=store, state=lasting.state
        )
        listener.transport = server
        await server.start()
        store.drop_rest()

    return serve


@asynccontextmanager
async def world(transport: Transport) -> AsyncIterator[tuple[Mortal, Machine | VfioMachine]]:
    """Run a guest, whose driver has started, on huge pages and on a worker that may be killed."""
    with (
        huge_pages(RAM_BYTES // HUGE_PAGE),
        GuestRam.of(RamBlock(0, RAM_BYTES, is_huge=True)) as ram,
    ):
        async with mortal(worker(transport)) as (workers, sock):
            if transport == "vhost-user":
                async with Frontend(sock) as frontend:
                    machine = await plugged_in(frontend, ram)
                    await machine.start()
                    yield workers, machine
            else:
                async with VfioClient(sock) as client:
                    vfio = VfioMachine(client, ram)
                    await client.realize(ram)
                    vfio.find_structures()
                    await cut_low_memory(client)
                    await vfio.start()
                    yield workers, vfio


async def cut_low_memory(client: VfioClient) -> None:
    """Announce RAM in pieces, none of which is made of whole huge pages."""
    (whole,) = client.ranges
    await client.unmap(whole)
    ends = (0, CUT, CUT + (32 << 10), RAM_BYTES)
    pieces = [Range(at, end - at, at, whole.fd) for at, end in pairwise(ends)]
    await client.map(*pieces)


@pytest.mark.parametrize("transport", ["vhost-user", "vfio-user"])
async def test_parts_are_collected_although_the_worker_dies(transport: Transport) -> None:
    async with world(transport) as (workers, machine):
        ram = machine.ram
        marked = MarkedPages(ram, [*FIRST, *SECOND, *THIRD])
        used = ram.resident_bytes()

        # As Linux sends them: an array is half of a huge page.
        for half in (FIRST[PARTS // 2 :], FIRST[: PARTS // 2]):
            assert ram.resident_bytes() == used
            await machine.inflate(*reversed(half))
        assert ram.resident_bytes() == used - HUGE_PAGE

        *others, last = SECOND
        await machine.inflate(*others)
        with none_to_spare():
            assert available_huge_pages() == 0
            workers.kill()
            await machine.inflate(THIRD[0], last)
            assert ram.resident_bytes() == used - 2 * HUGE_PAGE
        workers.check()
        assert workers.deaths == 1

        for pages in (SECOND, FIRST, THIRD[:1]):
            await machine.deflate(*pages)
        assert marked.gone() == {*FIRST, *SECOND}
        assert marked.lost(allowed=[*FIRST, *SECOND]) == set()
        await machine.report(THIRD[1], PARTS - 1)
        assert marked.lost(allowed=[*FIRST, *SECOND]) == set()
        await machine.report(FIRST[0], 3 * PARTS)
        assert ram.resident_bytes() == used - 3 * HUGE_PAGE
        assert workers.ledger == set()

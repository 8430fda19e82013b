from __future__ import annotations

import asyncio

from ballast.balloon.slices import SLICE_BUFFERS
from ballast.transport.slices import SliceServer
from ballast_protocol.errors import GuestError
from ballast_protocol.virtio.balloon import BalloonQueue
from support.balloon_guest import FREE, guest_with
from support.pages import pfn_array

INFLATE = BalloonQueue.INFLATE


class Owner:
    """Rings that are active as long as the test says so."""

    def __init__(self) -> None:
        self.active = True
        self.interrupts = 0
        self.broken: list[int] = []

    def is_active(self, index: int) -> bool:
        return self.active and index not in self.broken

    def interrupt(self, index: int) -> None:
        del index
        self.interrupts += 1

    def broke(self, index: int, error: GuestError) -> None:
        assert error.args
        self.broken.append(index)


async def turn() -> None:
    await asyncio.sleep(0)


async def test_a_full_ring_takes_several_turns_and_others_come_in_between() -> None:
    with guest_with() as guest:
        driver, owner = guest.drivers[INFLATE], Owner()
        slices = SliceServer(guest.device, owner)
        for _ in range(2 * SLICE_BUFFERS):
            driver.add_out(pfn_array([FREE[0]]))
        slices.serve(0, guest.queues[INFLATE])
        slices.serve(0, guest.queues[INFLATE])  # its turn comes, but not now
        assert driver.used_waiting == SLICE_BUFFERS
        await turn()
        assert driver.used_waiting == 2 * SLICE_BUFFERS
        await turn()
        assert owner.interrupts == 2


async def test_a_ring_that_has_stopped_meanwhile_is_left_alone() -> None:
    with guest_with() as guest:
        driver, owner = guest.drivers[INFLATE], Owner()
        slices = SliceServer(guest.device, owner)
        for _ in range(2 * SLICE_BUFFERS):
            driver.add_out(pfn_array([FREE[0]]))
        slices.serve(0, guest.queues[INFLATE])
        owner.active = False
        await turn()
        assert driver.used_waiting == SLICE_BUFFERS
        owner.active = True
        slices.serve(0, guest.queues[INFLATE])
        assert driver.used_waiting == 2 * SLICE_BUFFERS


async def test_what_was_forgotten_does_not_come_back_or_stand_in_the_way() -> None:
    with guest_with() as guest:
        driver, owner = guest.drivers[INFLATE], Owner()
        slices = SliceServer(guest.device, owner)
        for _ in range(2 * SLICE_BUFFERS):
            driver.add_out(pfn_array([FREE[0]]))
        slices.serve(0, guest.queues[INFLATE])
        slices.forget()
        await turn()
        assert driver.used_waiting == SLICE_BUFFERS
        slices.serve(0, guest.queues[INFLATE])
        assert driver.used_waiting == 2 * SLICE_BUFFERS


async def test_a_ring_that_breaks_is_reported() -> None:
    with guest_with() as guest:
        owner = Owner()
        guest.drivers[INFLATE].write_avail_index(1000)
        SliceServer(guest.device, owner).serve(0, guest.queues[INFLATE])
        assert owner.broken == [0]
        assert owner.interrupts == 0

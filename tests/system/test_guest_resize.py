"""Resizes of a real guest, and what its kernel makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ballast.daemon.config import Transport
from ballast.policy.resize import GuestState, OnFailure, Outcome, ResizeRequest
from ballast_images.guest import GuestImage
from support.system import (
    MIB,
    Guest,
    allocated_bytes,
    booted,
    counter,
    eventually,
    served,
    settle,
    settled,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 512 * MIB
LONG = 120.0


async def under_a_limit(guest: Guest) -> None:
    """The guest goes down in steps, is stopped on its way, and goes on to another target."""
    governor, device = guest.balloon.governor, guest.balloon.device
    request = ResizeRequest(RAM_BYTES - 128 * MIB, LONG, rate_bytes=32 * MIB)
    going_down = asyncio.create_task(governor.resize(request))
    steps = set()
    while not going_down.done():
        steps.add(device.target_pages)
        await asyncio.sleep(0.01)
    result = await going_down
    assert result.outcome is Outcome.REACHED, result.explanation
    assert result.seconds >= 128 / 32
    assert len(steps) > 10
    assert result.moved_bytes == 128 * MIB

    number = governor.start_resize(ResizeRequest(64 * MIB, LONG, rate_bytes=MIB))
    other = governor.start_resize(ResizeRequest(RAM_BYTES - 160 * MIB, LONG, rate_bytes=8 * MIB))
    assert (await governor.wait(number)).outcome is Outcome.SUPERSEDED
    await eventually(
        lambda: (guest.balloon.actual_bytes or 0) < RAM_BYTES - 128 * MIB, "it has begun"
    )
    cancelled = governor.cancel(OnFailure.SETTLE)
    assert (cancelled.id, cancelled.outcome) == (other, Outcome.CANCELLED)
    await settled(guest.balloon)
    target = guest.balloon.target_bytes or 0
    assert RAM_BYTES - 160 * MIB < target < RAM_BYTES - 128 * MIB
    await guest.assert_well()


async def on_hold(guest: Guest) -> None:
    """A held target stays through a reboot of the driver."""
    governor = guest.balloon.governor
    target = guest.balloon.target_bytes
    assert target is not None
    guest.balloon.set_target(target)  # now without a limit
    governor.hold("a test")
    with pytest.raises(Exception, match="on hold: a test"):
        guest.balloon.set_target(RAM_BYTES)
    driver = "/sys/bus/virtio/drivers/virtio_balloon"
    device = (await guest.run(f"basename {await guest.driver()}")).strip()
    await guest.run(f"echo {device} > {driver}/unbind; echo {device} > {driver}/bind")
    await settled(guest.balloon)
    assert guest.balloon.target_bytes == target
    governor.hold(None)
    await guest.assert_well()


async def inhibited(guest: Guest) -> None:
    """The guest gives memory up and the host keeps it; then it goes back as ever."""
    balloon = guest.balloon
    await settle(balloon, RAM_BYTES)
    await guest.memtool(f"dirty --bytes {300 * MIB}")
    balloon.governor.inhibit("a device has the memory")
    before, discarded = allocated_bytes(balloon), counter(balloon, "discarded_bytes")
    await settle(balloon, RAM_BYTES - 200 * MIB)
    assert allocated_bytes(balloon) >= before
    assert counter(balloon, "discarded_bytes") == discarded
    assert balloon.device.pages.kept.count << 12 == balloon.ledger_bytes == 200 * MIB
    await guest.assert_well()

    balloon.governor.inhibit(None)
    await settle(balloon, RAM_BYTES)
    assert balloon.device.pages.kept.count == 0
    found = await guest.memtool(f"fill --bytes {300 * MIB}")
    assert found["wrong_pages"] == 0
    full = allocated_bytes(balloon)
    await settle(balloon, RAM_BYTES - 200 * MIB)
    assert full - allocated_bytes(balloon) > 100 * MIB
    await settle(balloon, RAM_BYTES)


async def out_of_memory(guest: Guest) -> None:
    """A guest that cannot give so much is noticed, and gets back what it gave.

    It may take memory back before it kills a process, so it goes up and down a little.
    """
    await settle(guest.balloon, RAM_BYTES)
    request = ResizeRequest(16 * MIB, 90.0, stall_seconds=5.0, on_failure=OnFailure.ROLLBACK)
    result = await guest.balloon.governor.resize(request)
    assert result.outcome is Outcome.STALLED, result.explanation
    assert result.guest is GuestState.STALLED
    assert result.final_bytes is not None
    assert 16 * MIB < result.final_bytes < RAM_BYTES // 2
    assert result.is_rolled_back
    await settled(guest.balloon)
    assert guest.balloon.actual_bytes == RAM_BYTES
    assert "Out of puff" in await guest.run("dmesg")
    await guest.assert_well()


async def test_resizes(qemu: Path, image: GuestImage, transport: Transport) -> None:
    async with (
        served(transport=transport, free_page_reporting=False, deflate_on_oom=True) as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES, cpus=1) as guest,
    ):
        await under_a_limit(guest)
        if transport == "vhost-user":
            await on_hold(guest)
            await inhibited(guest)
        await out_of_memory(guest)

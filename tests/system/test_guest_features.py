"""Guests that negotiate something else than a stock one does: poison, hints, a newer kernel."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from ballast.balloon.hinting import HintState
from ballast_images.guest import GuestImage, build_guest
from support.system import (
    MIB,
    QUICK_ALLOCATION,
    Guest,
    allocated_bytes,
    booted,
    counter,
    eventually,
    served,
    settle,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 512 * MIB

REPORTING_SECONDS = 10.0
"""Longer than a kernel waits before it reports: 2 s after memory became free."""


async def assert_reporting_frees(guest: Guest, least_bytes: int) -> None:
    """Dirty and free memory, and wait until the guest has reported some of it.

    Only whole blocks of 2 MiB are reported, and so little memory is soon in pieces: the guest puts
    them together, and is asked again if what it had to report was too little.
    """
    balloon, reported = guest.balloon, counter(guest.balloon, "reported_bytes")
    most, is_enough = 0, asyncio.Event()

    def has_fallen() -> bool:
        nonlocal most
        allocated = allocated_bytes(balloon)
        most = max(most, allocated)
        return most - allocated > least_bytes

    async def dirty_and_free() -> None:
        while not is_enough.is_set():
            await guest.memtool(f"dirty --bytes {200 * MIB}")
            await guest.run("echo 1 > /proc/sys/vm/compact_memory")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_enough.wait(), REPORTING_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        # Meanwhile, for the guest may report it before its command has told us that it is done.
        tasks.create_task(dirty_and_free())
        await eventually(has_fallen, "reporting frees memory", 120)
        is_enough.set()
    assert counter(balloon, "reported_bytes") - reported > least_bytes


async def test_a_guest_that_zeroes_free_memory_keeps_reporting(
    qemu: Path, image: GuestImage
) -> None:
    arguments = (QUICK_ALLOCATION, "init_on_free=1")
    async with (
        served() as balloon,
        booted(
            qemu, image, balloon, memory_bytes=RAM_BYTES, cpus=1, kernel_arguments=arguments
        ) as guest,
    ):
        assert {4, 5} < await guest.feature_bits()
        assert balloon.device.config.poison_val == 0
        await assert_reporting_frees(guest, 64 * MIB)
        await settle(balloon, RAM_BYTES - 200 * MIB)
        await guest.assert_well()
        await settle(balloon, RAM_BYTES)
        found = await guest.memtool(f"fill --bytes {250 * MIB}")
        assert found["wrong_pages"] == 0
        assert counter(balloon, "reports_refused") == 0


async def test_a_round_of_hints_tells_what_is_free_and_discards_nothing(
    qemu: Path, image: GuestImage
) -> None:
    async with (
        served(free_page_hint=True) as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES, cpus=1) as guest,
    ):
        assert {3, 5} < await guest.feature_bits()
        reported, discarded = (
            counter(balloon, "reported_bytes"),
            counter(balloon, "discarded_bytes"),
        )
        balloon.start_hinting()
        hinting = balloon.device.hinting
        await eventually(lambda: not balloon.device.is_hinting, "the guest has listed it all")
        assert hinting.state in (HintState.DONE, HintState.STOP)
        assert hinting.hinted_bytes > RAM_BYTES // 2
        # Only reporting, which goes on beside it, has discarded anything.
        assert (
            counter(balloon, "discarded_bytes") - discarded
            == counter(balloon, "reported_bytes") - reported
        )
        await eventually(
            lambda: balloon.device.config.free_page_hint_cmd_id == 1, "the guest is let go"
        )
        found = await guest.memtool(f"fill --bytes {300 * MIB}")
        assert found["wrong_pages"] == 0
        await assert_reporting_frees(guest, 64 * MIB)

        # A round that is ended from our side in the middle gives the pages back as well.
        balloon.start_hinting()
        balloon.stop_hinting()
        assert (await guest.memtool(f"fill --bytes {300 * MIB}"))["wrong_pages"] == 0
        await guest.assert_well()


async def test_the_newer_kernel_of_backports(qemu: Path) -> None:
    newer = build_guest(suite="trixie-backports")
    async with (
        served() as balloon,
        booted(qemu, newer, balloon, memory_bytes=RAM_BYTES, cpus=1) as guest,
    ):
        assert (await guest.run("uname -r")).strip() == newer.kernel_release
        assert {1, 5} < await guest.feature_bits()
        await settle(balloon, RAM_BYTES - 200 * MIB)
        await guest.assert_well()
        await balloon.refresh_stats(10)
        await settle(balloon, RAM_BYTES)
        assert (await guest.memtool(f"fill --bytes {250 * MIB}"))["wrong_pages"] == 0
        await guest.assert_well()

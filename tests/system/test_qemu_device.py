"""The device as a real QEMU carries it to a driver, without a guest: what each queue does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.balloon.hinting import HintState
from ballast.daemon.config import Transport
from ballast_protocol.virtio.balloon import BalloonFeature, BalloonQueue
from support.driver import PAGE_SIZE, Segment
from support.system import (
    MIB,
    Bench,
    bench,
    counter,
    eventually,
    served,
    settle,
    settled,
)
from support.virtio_pci import LINUX_FEATURES

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 256 * MIB


@pytest.fixture
async def running(qemu: Path, transport: Transport) -> AsyncIterator[Bench]:
    async with served(transport=transport) as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        yield machine
        await machine.qtest.assert_alive()


async def test_the_host_frees_exactly_the_pages_in_the_books(running: Bench) -> None:
    running.ram.fill()
    assert running.ram.holes() == []
    async with running.driver.obeying():
        await settle(running.balloon, RAM_BYTES // 2)
        await running.assert_exact()
        assert running.ram.holes() == running.balloon.ledger_runs()
        await settle(running.balloon, RAM_BYTES)
    await running.assert_exact()
    assert running.balloon.ledger_runs() == []


async def test_the_books_follow_compaction_page_for_page(running: Bench) -> None:
    running.ram.fill()
    async with running.driver.obeying():
        await settle(running.balloon, RAM_BYTES - 4 * MIB)
    spare = min(running.driver.given) - 1
    for number, old in enumerate(running.driver.given[::97]):
        await running.driver.move(old, spare - 3 * number)
    assert len(running.balloon.ledger_runs()) > 10
    await running.assert_exact()


async def test_a_target_above_the_ram_means_all_of_it(running: Bench) -> None:
    async with running.driver.obeying():
        await settle(running.balloon, RAM_BYTES // 2)
        await settle(running.balloon, 5 * RAM_BYTES)
    assert running.balloon.target_bytes == RAM_BYTES
    assert await running.driver.pci.read_num_pages() == 0


async def refresh(running: Bench, values: list[tuple[int, int]]) -> None:
    """Ask for statistics, and answer as the guest."""
    asking = asyncio.create_task(running.balloon.refresh_stats(20))
    await running.driver.statistics_wanted()
    await running.driver.send_statistics(values)
    await asking


async def test_statistics_come_when_asked_for_and_not_before(running: Bench) -> None:
    balloon = running.balloon
    await eventually(lambda: balloon.guest_stats.values == {4: 1 << 20}, "the first statistics")
    for free in (11, 22):
        await refresh(running, [(4, free), (99, 1)])
        assert balloon.guest_stats.values == {4: free}
    assert counter(balloon, "unknown_statistics") == 2
    assert counter(balloon, "statistics_buffers") == 3


async def test_statistics_go_on_after_pauses_and_old_ones_do_not_look_new(running: Bench) -> None:
    balloon = running.balloon
    await eventually(lambda: balloon.guest_stats.values == {4: 1 << 20}, "the first statistics")
    for free in (11, 22, 33):
        balloon.guest_stats.last_update = 1
        await running.qtest.qmp.execute("stop")
        await running.qtest.qmp.execute("cont")
        await eventually(lambda: balloon.device.is_running, "the pause ends")
        assert balloon.guest_stats.last_update == 1
        await refresh(running, [(4, free)])
        assert balloon.guest_stats.values == {4: free}
        assert balloon.guest_stats.last_update > 1


async def test_reported_memory_is_freed(running: Bench) -> None:
    running.ram.fill()
    await running.driver.report(Segment(64 * MIB, 4 * MIB), Segment(80 * MIB, 2 * MIB))
    assert running.ram.holes() == [(64 * 256, 4 * 256), (80 * 256, 2 * 256)]
    assert counter(running.balloon, "reported_bytes") == 6 * MIB
    assert running.balloon.ledger_runs() == []


async def test_a_guest_that_fills_free_pages_with_a_pattern_keeps_them(
    qemu: Path, transport: Transport
) -> None:
    features = LINUX_FEATURES | BalloonFeature.PAGE_POISON
    async with (
        served(transport=transport) as balloon,
        bench(qemu, balloon, features=features) as machine,
    ):
        await machine.driver.start(poison=0xAAAAAAAA)
        machine.ram.fill(0xAA)
        await machine.driver.report(Segment(64 * MIB, 4 * MIB))
        assert machine.ram.holes() == []
        assert counter(balloon, "reports_refused") == 1

        # The next driver poisons with zeros, which is what a hole reads as.
        await (await machine.new_driver(features)).start(poison=0)
        await machine.driver.report(Segment(64 * MIB, 4 * MIB))
        assert machine.ram.holes() == [(64 * 256, 4 * 256)]
        await machine.qtest.assert_alive()


async def test_all_five_queues_and_a_round_of_hints(qemu: Path, transport: Transport) -> None:
    async with (
        served(transport=transport, free_page_hint=True) as balloon,
        bench(qemu, balloon) as machine,
    ):
        driver = machine.driver
        await driver.start()
        assert driver.features & BalloonFeature.FREE_PAGE_HINT
        machine.ram.fill()
        balloon.start_hinting()
        await eventually(lambda: balloon.device.is_hinting, "a round begins")
        command = (await driver.pci.read_config()).free_page_hint_cmd_id
        assert command >= 1 << 31
        await driver.send(BalloonQueue.FREE_PAGE_HINT, command.to_bytes(4, "little"))
        await driver.hint(Segment(64 * MIB, 4 * MIB))
        await driver.hint(Segment(96 * MIB, 4 * MIB))
        await driver.send(BalloonQueue.FREE_PAGE_HINT, bytes(4))
        assert balloon.device.hinting.state is HintState.DONE
        assert balloon.device.hinting.hinted_bytes == 8 * MIB
        assert (await driver.pci.read_config()).free_page_hint_cmd_id == 1
        assert machine.ram.holes() == []

        # Reporting has moved to index 4.
        await driver.report(Segment(64 * MIB, 4 * MIB))
        assert machine.ram.holes() == [(64 * 256, 4 * 256)]
        await machine.qtest.assert_alive()


async def test_a_queue_without_its_feature_takes_no_index(qemu: Path, transport: Transport) -> None:
    features = LINUX_FEATURES & ~int(BalloonFeature.STATS_VQ)
    async with (
        served(transport=transport) as balloon,
        bench(qemu, balloon, features=features) as machine,
    ):
        await machine.driver.start()
        machine.ram.fill()
        await machine.driver.report(Segment(64 * MIB, 4 * MIB))
        assert machine.ram.holes() == [(64 * 256, 4 * 256)]
        assert counter(balloon, "statistics_buffers") == 0
        await machine.qtest.assert_alive()


async def test_a_target_that_waits_for_the_driver_is_obeyed_at_its_start(
    qemu: Path, transport: Transport
) -> None:
    target = RAM_BYTES - 32 * MIB
    async with (
        served(transport=transport, target=target) as balloon,
        bench(qemu, balloon) as machine,
    ):
        await machine.driver.start()
        async with machine.driver.obeying():
            await settled(balloon)
        assert len(machine.driver.given) * PAGE_SIZE == 32 * MIB
        await machine.assert_exact()

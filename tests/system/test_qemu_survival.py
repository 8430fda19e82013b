"""What a real QEMU must survive, again and again: pauses, resets, unplugs, and targets meanwhile.

QEMU 11.1 crashes if it is told of a config change while the device is stopped, and it says nothing
about why the device stops. So each test changes the target without pause while the machine goes
through something, and ends with the same three questions: is QEMU alive, has the last target been
reached, do the books hold exactly the driver's pages?
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ballast.daemon.config import Transport
from ballast.daemon.vm import VirtualMachine
from ballast_protocol.virtio.balloon import BalloonFeature
from support.driver import PAGE_SIZE
from support.qtest import Qtest
from support.system import (
    MIB,
    ROOT_PORT_SLOT,
    bench,
    changing_targets,
    deleting_balloon,
    device_properties,
    eventually,
    log_dirty_pages,
    served,
    settle,
    settled,
)
from support.virtio_pci import LINUX_FEATURES, BalloonDriver

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 256 * MIB
MAX_BALLOON_BYTES = 600 * PAGE_SIZE
"""Small balloons, so that the time goes into transitions."""


async def pause_and_resume(qtest: Qtest, driver: BalloonDriver, choose: random.Random) -> None:
    """One stop and cont, with the driver's CPU standing still in between as it would."""
    async with driver.obeying():
        await asyncio.sleep(choose.uniform(0, 0.004))
    await qtest.qmp.execute("stop")
    await asyncio.sleep(choose.uniform(0, 0.002))
    await qtest.qmp.execute("cont")


async def test_targets_without_pause_while_stopped_and_continued_150_times(
    qemu: Path, transport: Transport
) -> None:
    choose = random.Random(1)
    async with served(transport=transport) as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        async with changing_targets(balloon, RAM_BYTES, MAX_BALLOON_BYTES) as targets:
            for _ in range(150):
                await pause_and_resume(machine.qtest, machine.driver, choose)
        assert targets.count > 1000
        async with machine.driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def system_reset(qtest: Qtest) -> None:
    """Reset the machine and wait until it is done."""
    with qtest.qmp.listener("RESET") as events:
        await qtest.qmp.execute("system_reset")
        await events.get()


async def test_targets_without_pause_while_the_machine_is_reset_50_times(
    qemu: Path, transport: Transport
) -> None:
    choose = random.Random(3)
    async with served(transport=transport) as balloon, bench(qemu, balloon) as machine:
        async with changing_targets(balloon, RAM_BYTES, MAX_BALLOON_BYTES):
            for number in range(50):
                await machine.driver.start()
                async with machine.driver.obeying():
                    await asyncio.sleep(choose.uniform(0, 0.005))
                if number % 3 == 0:
                    await machine.qtest.qmp.execute("stop")
                await system_reset(machine.qtest)
                if number % 3 == 0:
                    await machine.qtest.qmp.execute("cont")
                # Firmware's time: targets go on, and nobody drives the device.
                await asyncio.sleep(choose.uniform(0, 0.003))
                await machine.new_driver()
        await machine.driver.start()
        async with machine.driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def test_targets_without_pause_while_the_driver_is_unbound_100_times(
    qemu: Path, transport: Transport
) -> None:
    choose = random.Random(5)
    async with served(transport=transport) as balloon, bench(qemu, balloon) as machine:
        driver = machine.driver
        async with changing_targets(balloon, RAM_BYTES, MAX_BALLOON_BYTES):
            for _ in range(100):
                await driver.start()
                async with driver.obeying():
                    await asyncio.sleep(choose.uniform(0, 0.004))
                await driver.leave()
                await asyncio.sleep(choose.uniform(0, 0.002))
        assert balloon.ledger_runs() == []
        await driver.start()
        async with driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def unplug(qtest: Qtest) -> None:
    """Take the device out of its root port, as a guest's hot-plug driver does."""
    async with deleting_balloon(qtest.qmp):
        await set_slot_power(qtest, on=False)


async def set_slot_power(qtest: Qtest, *, on: bool) -> None:
    """Write a root port's Slot Control: power and its indicator (PCI Express 7.5.3.10)."""
    offset = await qtest.read_config(0, ROOT_PORT_SLOT, 0x34) & 0xFF
    while (header := await qtest.read_config(0, ROOT_PORT_SLOT, offset)) & 0xFF != 0x10:
        offset = header >> 8 & 0xFF
    control = 0x0100 if on else 0x0700
    await qtest.write_config(0, ROOT_PORT_SLOT, offset + 0x18, control)


async def test_targets_without_pause_while_the_device_is_unplugged_30_times(
    qemu: Path, transport: Transport
) -> None:
    choose = random.Random(7)
    # With MSI-X in a vfio-user device, QEMU 11.1 aborts when it is unplugged.
    async with (
        served(transport=transport, variant="intx") as balloon,
        bench(qemu, balloon, is_unpluggable=True) as machine,
    ):
        async with changing_targets(balloon, RAM_BYTES, MAX_BALLOON_BYTES):
            for _ in range(30):
                await machine.driver.start()
                async with machine.driver.obeying():
                    await asyncio.sleep(choose.uniform(0, 0.005))
                await unplug(machine.qtest)
                assert not balloon.device.is_running
                await plug(machine.qtest, balloon)
                await machine.new_driver(bus=1)
        await machine.driver.start()
        async with machine.driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def plug(qtest: Qtest, balloon: VirtualMachine) -> None:
    """Put the device into its root port.

    A vhost-user connection has been there all the time; over vfio-user QEMU makes a new one.
    """
    await qtest.qmp.execute("device_add", device_properties(balloon, bus="rp0"))
    await set_slot_power(qtest, on=True)


async def test_targets_without_pause_while_dirty_pages_are_logged(qemu: Path) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        targets = changing_targets(balloon, RAM_BYTES, MAX_BALLOON_BYTES)
        async with targets, machine.driver.obeying():
            await log_dirty_pages(machine.qtest.qmp)
        async with machine.driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def test_a_target_set_during_a_pause_is_reached_after_it(qemu: Path) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        async with machine.driver.obeying():
            await settle(balloon, RAM_BYTES - 8 * MIB)
        await machine.qtest.qmp.execute("stop")
        await eventually(lambda: not balloon.device.is_running, "the pause arrives")
        assert balloon.status()["state"] == "paused"
        balloon.set_target(RAM_BYTES - 12 * MIB)
        await machine.qtest.qmp.execute("cont")
        async with machine.driver.obeying():
            await settled(balloon)
        assert len(machine.driver.given) * PAGE_SIZE == 12 * MIB
        await machine.assert_exact()


async def test_a_new_boot_does_not_bring_an_old_target_back(
    qemu: Path, transport: Transport
) -> None:
    """A guest that writes `poison_val` at its start makes QEMU send the whole old config again."""
    features = LINUX_FEATURES | BalloonFeature.PAGE_POISON
    async with (
        served(transport=transport) as balloon,
        bench(qemu, balloon, features=features) as machine,
    ):
        await machine.driver.start(poison=0)
        async with machine.driver.obeying():
            await settle(balloon, RAM_BYTES - 16 * MIB)
        await system_reset(machine.qtest)
        balloon.set_target(RAM_BYTES - 4 * MIB)
        await (await machine.new_driver(features)).start(poison=0)
        assert balloon.device.actual_pages == 0
        assert balloon.ledger_runs() == []
        assert (await machine.driver.pci.read_config()).num_pages == 4 * MIB // PAGE_SIZE
        async with machine.driver.obeying():
            await settled(balloon)
        await machine.assert_exact()


async def test_a_new_boot_brings_its_own_poison_and_a_pause_keeps_it(
    qemu: Path, transport: Transport
) -> None:
    """No buffer was used before the reset, so the rings look exactly as after a pause."""
    features = LINUX_FEATURES | BalloonFeature.PAGE_POISON
    async with (
        served(transport=transport) as balloon,
        bench(qemu, balloon, features=features) as machine,
    ):
        for poison in (0, 0xAAAAAAAA, 0x55555555):
            await (await machine.new_driver(features)).start(poison=poison)
            assert (await machine.driver.pci.read_config()).poison_val == poison
            await machine.qtest.qmp.execute("stop")
            await machine.qtest.qmp.execute("cont")
            await eventually(lambda: balloon.device.is_running, "the pause ends")
            assert (await machine.driver.pci.read_config()).poison_val == poison
            await system_reset(machine.qtest)
        await machine.qtest.assert_alive()

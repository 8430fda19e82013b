"""A whole vfio-user session: a QEMU-like client, a driver, real rings, memory and sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.balloon.features import DEFAULT_FEATURES
from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import PciIrq, PciRegion
from ballast_protocol.virtio.balloon import BalloonConfig, BalloonFeature, BalloonQueue
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.config_space import (
    CapabilityId,
    Command,
    DeviceControl,
    Express,
    Header,
)
from ballast_protocol.virtio.pci.structures import Common, DeviceStatus, StructureType
from support.backend import until
from support.driver import PAGE_SIZE, DriverQueue
from support.fds import none_left_open
from support.machine import FREE, PAGES, RAM_BYTES
from support.pages import MarkedPages, pfn_array
from support.vfio_machine import (
    CONFIG_VECTOR,
    VfioBackend,
    VfioMachine,
    vfio_backend_at,
    vfio_machine_at,
)

ALL = DEFAULT_FEATURES | BalloonFeature.FREE_PAGE_HINT
INFLATE, STATS = BalloonQueue.INFLATE, BalloonQueue.STATS


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VfioBackend]:
    with none_left_open():
        async with vfio_backend_at(tmp_path / "s", request.param) as backend:
            yield backend


@pytest.fixture
async def machine(backend: VfioBackend) -> AsyncIterator[VfioMachine]:
    async with vfio_machine_at(backend.path) as machine:
        yield machine


@pytest.fixture
async def mapped(tmp_path: Path) -> AsyncIterator[VfioBackend]:
    with none_left_open():
        async with vfio_backend_at(tmp_path / "m", features=ALL) as backend:
            yield backend


# The data path


@pytest.mark.parametrize("unwanted", [0, int(VirtioFeature.EVENT_IDX)], ids=["event-idx", "plain"])
async def test_every_queue_works(backend: VfioBackend, machine: VfioMachine, unwanted: int) -> None:
    marked = MarkedPages(machine.ram, FREE)
    await machine.start(unwanted)
    before = machine.ram.resident_bytes()
    assert not machine.features & (VirtioFeature.ACCESS_PLATFORM | VirtioFeature.RING_RESET)
    await machine.inflate(*reversed(FREE[:256]))
    # The buffer itself is the first that its page has seen.
    assert machine.ram.resident_bytes() == before - 255 * PAGE_SIZE
    await machine.set_actual(256)
    assert backend.held == set(FREE[:256]) == marked.gone()
    await machine.deflate(*FREE[:100])
    await machine.set_actual(156)
    await machine.report(FREE[300], 8)
    await machine.offer_statistics(12345)
    await machine.settled()
    backend.server.refresh()
    assert await machine.config() == BalloonConfig(actual=156)
    assert backend.held == set(FREE[100:256])
    assert backend.device.actual_bytes == RAM_BYTES - 156 * PAGE_SIZE
    assert marked.lost(allowed=[*FREE[:256], *FREE[300:308]]) == set()
    assert backend.device.statistics.values == {4: 12345}
    assert backend.session.problem == ""


async def test_a_target_reaches_the_guest(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.start()
    before = await machine.get(Common.CONFIG_GENERATION)
    backend.device.set_target(RAM_BYTES // 2)
    if machine.client.msix_size:
        assert await machine.client.interrupted(CONFIG_VECTOR) == 1
    else:
        await machine.client.interrupted(0, PciIrq.INTX)
        assert await machine.read(StructureType.ISR, 0, 1) == 2
    assert (await machine.config()).num_pages == PAGES // 2
    assert await machine.get(Common.CONFIG_GENERATION) != before


async def test_a_target_from_before_is_there_when_the_guest_looks(backend: VfioBackend) -> None:
    backend.device.set_target(RAM_BYTES // 4)
    async with vfio_machine_at(backend.path) as machine:
        assert (await machine.config()).num_pages == PAGES * 3 // 4


async def test_statistics_on_demand(backend: VfioBackend, machine: VfioMachine) -> None:
    assert not backend.server.request_statistics()
    await machine.start()
    assert not backend.server.request_statistics()
    await machine.offer_statistics(1)
    await machine.settled()
    assert backend.server.request_statistics()
    await machine.interrupted(STATS)
    await machine.offer_statistics(2)
    await machine.settled()
    assert backend.device.statistics.values == {4: 2}


async def test_what_was_filled_before_driver_ok_is_served(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    await machine.set_up()
    await machine.offer_statistics(7)
    machine.queues[INFLATE].add_out(pfn_array([FREE[0]]))
    await machine.ring(INFLATE)
    await machine.settled()
    assert (backend.held, backend.device.statistics.values) == (set(), {})
    await machine.add_status(DeviceStatus.DRIVER_OK)
    await machine.settled()
    assert (backend.held, backend.device.statistics.values) == ({FREE[0]}, {4: 7})


# Life cycle


async def test_a_driver_that_resets_and_its_successor(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    await machine.start()
    await machine.inflate(*FREE[:40])
    await machine.set_actual(40)
    await machine.reset_device()
    assert not backend.device.is_running
    assert backend.active == []
    await machine.start()
    assert (await machine.config()).actual == 0
    assert backend.held == set()
    await machine.inflate(FREE[3])
    assert backend.held == {FREE[3]}


async def test_a_reset_of_the_machine(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.start()
    await machine.inflate(*FREE[:4])
    await machine.client.reset()
    assert not backend.device.is_running
    assert await machine.get(Common.DEVICE_STATUS) == 0
    await machine.start()
    await machine.inflate(FREE[9])
    assert backend.held == {FREE[9]}


async def test_buffers_of_a_driver_that_is_gone_are_not_served_to_its_successor(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    """More than a slice waits when the driver resets; the next one begins in the same breath."""
    await machine.start()
    old = machine.queues[INFLATE]
    for number in range(128):
        old.add_out(pfn_array([FREE[number]]))
    fresh = DriverQueue(machine.ram, 128, event_idx=old.event_idx, slot_size=2048)
    fresh.add_out(pfn_array([FREE[400]]))
    burst = machine.posted(StructureType.NOTIFY, 0, 2, 0) + machine.successor(fresh)
    await machine.client.send_raw(burst)
    await machine.settled()
    assert backend.held == {FREE[400]}
    assert fresh.used_waiting == 1
    # The slice of before the reset was the last that the old driver had.
    assert old.used_waiting == 64


async def test_a_queue_that_is_enabled_late(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.negotiate()
    await machine.enable_interrupts()
    await machine.add_status(DeviceStatus.DRIVER_OK)
    await machine.settled()
    assert backend.active == []
    event_idx = bool(machine.features & VirtioFeature.EVENT_IDX)
    machine.queues[INFLATE] = DriverQueue(machine.ram, 128, event_idx=event_idx)
    await machine.set_up_queue(0, machine.queues[INFLATE])
    await machine.settled()
    assert backend.active == [0]
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}


async def test_nothing_is_touched_while_bus_mastering_is_off(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    await machine.set_up()
    machine.queues[INFLATE].add_out(pfn_array([FREE[0]]))
    await machine.set_command(Command.MEMORY)
    await machine.add_status(DeviceStatus.DRIVER_OK)
    await machine.ring(INFLATE)
    await machine.settled()
    assert (backend.held, backend.active) == (set(), [])
    assert not backend.server.request_statistics()
    await machine.set_command(Command.MEMORY | Command.BUS_MASTER)
    await machine.interrupted(INFLATE)
    assert backend.held == {FREE[0]}


async def test_a_broken_queue_needs_a_reset(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.start()
    machine.queues[INFLATE].write_avail_index(5000)
    await machine.ring(INFLATE)
    assert await machine.get(Common.DEVICE_STATUS) & DeviceStatus.NEEDS_RESET
    assert "queue 0" in backend.session.problem
    if machine.client.msix_size:
        await machine.client.interrupted(CONFIG_VECTOR)
    await machine.start()
    assert backend.session.problem == ""
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}


async def test_a_function_level_reset(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.start()
    await machine.inflate(FREE[0])
    at = machine.client.config[Header.CAPABILITIES.offset]
    while machine.client.config[at] != CapabilityId.EXPRESS:
        at = machine.client.config[at + 1]
    control = DeviceControl.FUNCTION_LEVEL_RESET.to_bytes(2, "little")
    await machine.client.write(PciRegion.CONFIG, at + Express.DEVICE_CONTROL.offset, control)
    assert await machine.get(Common.DEVICE_STATUS) == 0
    assert not backend.device.is_running
    await machine.start()
    await machine.inflate(FREE[1])
    assert backend.held == {FREE[1]}


# The mapped page


async def test_the_page_is_the_config_space(mapped: VfioBackend) -> None:
    async with vfio_machine_at(mapped.path) as machine:
        await machine.start()
        ((_, page),) = machine.client.mapped.items()
        before = machine.client.messages.copy()
        mapped.device.set_target(RAM_BYTES // 2)
        assert int.from_bytes(page[0:4], "little") == PAGES // 2
        page[4:8] = (99).to_bytes(4, "little")
        mapped.server.refresh()
        assert mapped.device.actual_pages == 99
        assert machine.client.messages == before
        # Without anybody asking, it is seen a moment after a queue was used.
        await machine.inflate(FREE[0])
        page[4:8] = (1).to_bytes(4, "little")
        await until(lambda: mapped.device.actual_pages == 1)


async def test_a_guest_that_cannot_use_the_page_has_its_messages_heard(mapped: VfioBackend) -> None:
    async with vfio_machine_at(mapped.path) as machine:
        for view in machine.client.mapped.values():
            view.close()
        machine.client.mapped.clear()
        await machine.set_up()
        await machine.write(StructureType.DEVICE, 12, 4, 0xAAAAAAAA)
        await machine.add_status(DeviceStatus.DRIVER_OK)
        await machine.inflate(*FREE[:3])
        await machine.set_actual(3)
        await machine.inflate(*FREE[3:6])
        mapped.server.refresh()
        assert mapped.device.actual_pages == 3
        assert await machine.config() == BalloonConfig(0, 3, 0, 0xAAAAAAAA)


async def test_a_round_of_hints_does_not_outlive_its_driver(mapped: VfioBackend) -> None:
    async with vfio_machine_at(mapped.path) as machine:
        await machine.start()
        mapped.device.start_hinting()
        command = (await machine.config()).free_page_hint_cmd_id
        assert command >= 2
        hints = machine.queues[BalloonQueue.FREE_PAGE_HINT]
        hints.add_out(command.to_bytes(4, "little"))
        await machine.done(BalloonQueue.FREE_PAGE_HINT)
        hints.add_in(2048)
        await machine.done(BalloonQueue.FREE_PAGE_HINT)
        assert mapped.device.hinting.hinted_bytes == 2048
        await machine.reset_device()
        assert (await machine.config()).free_page_hint_cmd_id < 2
        await machine.start()
        assert (await machine.config()).free_page_hint_cmd_id == 0


async def test_poison_that_is_written_to_the_page_refuses_reports(mapped: VfioBackend) -> None:
    async with vfio_machine_at(mapped.path) as machine:
        marked = MarkedPages(machine.ram, FREE)
        await machine.set_up()
        await machine.write(StructureType.DEVICE, 12, 4, 0xAA)
        await machine.add_status(DeviceStatus.DRIVER_OK)
        await machine.report(FREE[0], 4)
        assert marked.lost() == set()
        await machine.start()  # another driver, which has not written anything
        await machine.report(FREE[0], 4)
        assert marked.gone() == set(FREE[:4])


# Interrupts


async def test_intx_stays_until_the_status_was_read(tmp_path: Path) -> None:
    async with (
        vfio_backend_at(tmp_path / "s", Variant.INTX) as backend,
        vfio_machine_at(backend.path) as machine,
    ):
        await machine.start()
        backend.device.set_target(RAM_BYTES // 2)
        assert await machine.client.interrupted(0, PciIrq.INTX) == 1
        await machine.client.end_intx()  # nobody has read: raised again
        assert await machine.client.interrupted(0, PciIrq.INTX) == 1
        assert await machine.read(StructureType.ISR, 0, 1) == 2
        await machine.client.end_intx()
        await machine.settled()
        assert machine.client.take_interrupts(0, PciIrq.INTX) == 0
        # What is held back by the driver comes when it allows interrupts again.
        command = Command.MEMORY | Command.BUS_MASTER
        await machine.set_command(command | Command.INTX_DISABLE)
        backend.device.set_target(RAM_BYTES // 4)
        await machine.settled()
        assert machine.client.take_interrupts(0, PciIrq.INTX) == 0
        await machine.set_command(command)
        assert await machine.client.interrupted(0, PciIrq.INTX) == 1


async def test_vectors_are_replaced_and_removed(mapped: VfioBackend) -> None:
    async with vfio_machine_at(mapped.path) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        await machine.client.enable_msix(6)
        await machine.inflate(FREE[1])
        await machine.client.enable_msix(1)
        machine.queues[INFLATE].add_out(pfn_array([FREE[2]]))
        await machine.ring(INFLATE)
        await machine.settled()
        assert machine.queues[INFLATE].used_waiting == 1
        mapped.device.set_target(RAM_BYTES // 2)
        await machine.client.interrupted(CONFIG_VECTOR)
        assert mapped.held == set(FREE[:3])

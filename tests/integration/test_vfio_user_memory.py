"""Memory under a vfio-user device: it comes and goes in pieces, or is not shared at all."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.vfio_user import queues
from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import Command, DmaMapFlag
from ballast_protocol.vfio_user.message import DmaAccess, Header
from ballast_protocol.virtio.balloon import BalloonQueue
from ballast_protocol.virtio.pci.structures import DeviceStatus, StructureType
from support.backend import until
from support.driver import PAGE_SIZE, DriverQueue, RamBlock
from support.fds import memory_file, none_left_open
from support.machine import FREE, RAM_BYTES
from support.pages import MarkedPages, pfn_array
from support.vfio_client import Range
from support.vfio_link import VfioLink
from support.vfio_machine import VfioBackend, VfioMachine, vfio_backend_at, vfio_machine_at
from support.vfio_messages import reply

INFLATE = BalloonQueue.INFLATE
HALF = RAM_BYTES // 2


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[VfioBackend]:
    with none_left_open():
        async with vfio_backend_at(tmp_path / "s", Variant.MSIX) as backend:
            yield backend


@pytest.fixture
async def machine(backend: VfioBackend) -> AsyncIterator[VfioMachine]:
    async with vfio_machine_at(backend.path) as machine:
        yield machine


def halves(machine: VfioMachine) -> tuple[Range, Range]:
    """Return all of RAM in two pieces; the rings are in the first."""
    fd = machine.ram.regions[0].fd
    return Range(0, HALF, 0, fd), Range(HALF, HALF, HALF, fd)


# Coming and going


@pytest.mark.parametrize("size", [2048, 4096 * 3, 1 << 20])
async def test_nothing_is_lost_or_served_twice_while_memory_is_shuffled(
    backend: VfioBackend, machine: VfioMachine, size: int
) -> None:
    """Buffers come all the while; the pieces cut through the rings and the buffers."""
    await machine.start()
    marked = MarkedPages(machine.ram, FREE)
    fd, cut = machine.ram.regions[0].fd, -(-size // PAGE_SIZE) * PAGE_SIZE
    rest = Range(cut, RAM_BYTES - cut, cut, fd)
    driver = machine.queues[INFLATE]
    served = 0
    for page in FREE[:300]:
        if driver.in_flight < 100:
            driver.add_out(pfn_array([page]))
            await machine.ring(INFLATE)
        if page % 10 == 0:
            await machine.client.shuffle(Range(0, cut, 0, fd), rest)
        served += len(driver.collect())
    served += len(await machine.done(INFLATE))
    assert served == 300
    assert backend.held == set(FREE[:300]) == marked.gone()
    assert backend.device.metrics.inflate_buffers == 300
    assert backend.device.metrics.malformed_chains == 0


async def test_a_ring_that_is_back_before_its_buffers_waits_for_them(
    backend: VfioBackend, machine: VfioMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "SETTLE_SECONDS", 3600.0)
    await machine.start()
    low, high = halves(machine)
    await machine.client.unmap(*machine.client.ranges)
    driver = machine.queues[INFLATE]
    machine.ram.write(HALF, pfn_array([FREE[0]]))
    driver.add(out=[(segment := driver.slot(0))._replace(address=HALF, size=4)])
    assert segment.address < HALF
    await machine.ring(INFLATE)
    await machine.client.map(low)
    await machine.ring(INFLATE)
    await machine.settled()
    assert (backend.active, driver.used_waiting) == ([], 0)
    await machine.client.map(high)
    await machine.done(INFLATE)
    assert backend.held == {FREE[0]}
    assert backend.device.metrics.malformed_chains == 0
    assert backend.session.problem == ""


async def test_memory_that_does_not_come_back_is_done_without(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    await machine.start()
    low, high = halves(machine)
    await machine.client.shuffle(low, high)
    await machine.client.unmap(*machine.client.ranges)
    await machine.client.map(low)
    assert backend.active == []
    await until(lambda: bool(backend.active))
    await machine.inflate(5000 % (HALF // PAGE_SIZE))
    assert len(backend.held) == 1


async def test_rings_that_are_gone_are_told_of_and_forgotten_once_they_are_back(
    backend: VfioBackend,
    machine: VfioMachine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "SETTLE_SECONDS", 0.0)
    await machine.start()
    low, high = halves(machine)
    await machine.client.unmap(*machine.client.ranges)
    await machine.client.map(high)
    await until(lambda: bool(backend.session.problem))
    assert "queue 0 cannot be used" in backend.session.problem
    machine.queues[INFLATE].add_out(pfn_array([FREE[0]]))
    await machine.ring(INFLATE)
    await machine.client.map(low)
    await machine.interrupted(INFLATE)
    assert backend.session.problem == ""
    assert backend.held == {FREE[0]}
    assert "a bug of ours" not in caplog.text


async def test_a_driver_that_starts_before_its_memory(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    ranges = list(machine.client.ranges)
    await machine.set_up()
    await machine.client.unmap(*ranges)
    await machine.add_status(DeviceStatus.DRIVER_OK)
    machine.queues[INFLATE].add_out(pfn_array([FREE[0]]))
    await machine.client.map(*ranges)
    await machine.settled()
    assert backend.held == {FREE[0]}
    assert backend.session.problem == ""


# What is not the guest's to give


async def test_a_read_only_map_is_never_discarded(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    fd = machine.ram.regions[0].fd
    marked = MarkedPages(machine.ram, FREE)
    await machine.client.unmap(*machine.client.ranges)
    start = FREE[0] * PAGE_SIZE
    rom = Range(start, RAM_BYTES - start, start, fd, DmaMapFlag.READ)
    await machine.client.map(Range(0, start, 0, fd), rom)
    await machine.start()
    await machine.inflate(*FREE[:8])
    await machine.report(FREE[8], 8)
    assert marked.lost() == set()


async def test_maps_without_a_file_do_no_harm(backend: VfioBackend, machine: VfioMachine) -> None:
    await machine.client.map(Range(1 << 32, 1 << 24))
    await machine.start()
    await machine.inflate(FREE[0], (1 << 32) // PAGE_SIZE)
    assert FREE[0] in backend.held
    assert backend.session.problem == ""
    assert backend.device.ram_bytes == RAM_BYTES


async def test_more_than_one_file(backend: VfioBackend) -> None:
    above = 1 << 32
    blocks = (RamBlock(0, RAM_BYTES), RamBlock(above, RAM_BYTES))
    async with vfio_machine_at(backend.path, blocks=blocks) as machine:
        await machine.start()
        pages = [above // PAGE_SIZE + 7, FREE[0]]
        marked = MarkedPages(machine.ram, pages)
        await machine.inflate(*pages)
        assert marked.gone() == set(pages)
        assert backend.device.ram_bytes == 2 * RAM_BYTES


# Memory that is not shared


async def replace_files(machine: VfioMachine, fd: int | None) -> None:
    """Announce all of RAM anew with another file behind it, or none."""
    old = list(machine.client.ranges)
    await machine.client.unmap(*old)
    await machine.client.map(*(Range(each.address, each.size, each.offset, fd) for each in old))


async def test_no_memory_at_all_is_told_once(
    backend: VfioBackend, machine: VfioMachine, caplog: pytest.LogCaptureFixture
) -> None:
    await replace_files(machine, None)
    await machine.start()
    await machine.ring(INFLATE)
    await machine.settled()
    await until(lambda: backend.session.problem == NO_SHARED_MEMORY)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in said] == [NO_SHARED_MEMORY]


async def test_private_memory_is_told_once(
    backend: VfioBackend, machine: VfioMachine, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU with share=off passes a file; what the guest writes goes to copies of its pages."""
    fd = memory_file(RAM_BYTES)
    await replace_files(machine, fd)
    os.close(fd)
    await machine.start()
    machine.queues[INFLATE].add_out(pfn_array([FREE[0]]))
    for _ in range(5):
        await machine.ring(INFLATE)
    await until(lambda: backend.session.problem == NO_SHARED_MEMORY)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in said] == [NO_SHARED_MEMORY]
    assert machine.queues[INFLATE].used_waiting == 0


async def test_shared_memory_is_not_taken_for_private(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    for _ in range(3):
        await machine.start()
        await machine.inflate(FREE[0])
        await machine.settled()
        await asyncio.sleep(0)
    assert backend.session.problem == ""


async def test_an_answer_about_a_driver_that_is_gone_is_not_held_against_the_next(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    await machine.start()
    old = machine.queues[INFLATE]
    fresh = DriverQueue(machine.ram, 128, event_idx=old.event_idx)
    old.add_out(pfn_array([FREE[0]]))
    burst = machine.posted(StructureType.NOTIFY, 0, 2, 0) + machine.successor(fresh)
    await machine.client.send_raw(burst)
    await machine.settled()
    await until(lambda: not backend.session._function.probe.state.is_waiting)
    assert backend.session.problem == ""


async def test_a_client_that_answers_no_question_is_asked_one_only(
    backend: VfioBackend,
    machine: VfioMachine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []

    async def ignore(_link: VfioLink, header: Header, _payload: bytes) -> None:
        asked.append(header.command)

    monkeypatch.setattr(VfioLink, "_serve", ignore)
    for number in range(40):
        await machine.start()
        await machine.inflate(FREE[number])
    assert asked == [Command.DMA_READ]
    assert backend.held == {FREE[39]}
    assert "a bug of ours" not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        DmaAccess(0x123000, 4).pack() + bytes(4),
        DmaAccess(0, 1 << 20).pack() + bytes(4),
        bytes(3),
        bytes(1000),
    ],
)
async def test_a_lying_answer_ends_the_connection(
    backend: VfioBackend, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async def lie(link: VfioLink, header: Header, _payload: bytes) -> None:
        await link.send_raw(reply(header.command, answer, header.message_id))

    with monkeypatch.context() as patch:
        patch.setattr(VfioLink, "_serve", lie)
        async with vfio_machine_at(backend.path) as machine:
            await machine.start()
            await machine.ring(INFLATE)
            await backend.alone()
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}


async def test_a_refused_answer_says_nothing(backend: VfioBackend, machine: VfioMachine) -> None:
    machine.client.ram = None
    await machine.start()
    await machine.inflate(FREE[0])
    await until(lambda: not backend.session._function.probe.state.is_waiting)
    assert backend.session.problem == ""

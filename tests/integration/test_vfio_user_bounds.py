"""vfio-user clients that lend the wrong things, or reach for what is not there."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import Command, PciIrq
from ballast_protocol.vfio_user.message import pack_message
from ballast_protocol.virtio.balloon import BalloonQueue
from support.driver import PAGE_SIZE, RamBlock
from support.fds import none_left_open, open_fds
from support.machine import FREE, RAM_BYTES
from support.vfio_client import Range
from support.vfio_link import RefusedCommandError
from support.vfio_machine import VfioBackend, vfio_backend_at, vfio_machine_at
from support.vfio_messages import (
    access,
    dma_map,
    dma_unmap,
    hello,
    multi,
    set_irqs,
)

INFLATE = BalloonQueue.INFLATE
VERSION = pack_message(1, Command.VERSION, hello())


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[VfioBackend]:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    with none_left_open():
        async with vfio_backend_at(tmp_path / "s") as backend:
            yield backend
    assert not failures


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


async def still_serves(backend: VfioBackend) -> None:
    """Check that a well-behaved machine can come now."""
    await backend.alone()
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}
    await backend.alone()


# Interrupts


@contextmanager
def garbage(kind: str) -> Iterator[int]:
    """Lend a descriptor of another kind, whose other end, if it has one, is gone."""
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
    elif kind == "folder":
        fd = os.open("/", os.O_RDONLY)
        yield fd
        os.close(fd)
    elif kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        yield reading
        os.close(reading)
    else:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            yield ours.fileno()


KINDS = ["file", "folder", "pipe", "socket"]


@pytest.mark.parametrize("kind", KINDS)
async def test_interrupts_that_are_no_eventfds(backend: VfioBackend, kind: str) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        with garbage(kind) as fd:
            payload = set_irqs(0x24, PciIrq.MSIX, 0, 6)
            await machine.client.ask(Command.DEVICE_SET_IRQS, payload, fds=[fd] * 6)
        machine.queues[INFLATE].add_out(FREE[0].to_bytes(4, "little"))
        await machine.ring(INFLATE)
        await machine.settled()
        backend.device.set_target(RAM_BYTES // 2)
        assert backend.held == {FREE[0]}
    await still_serves(backend)


@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_an_unmask_that_is_no_eventfd(backend: VfioBackend, kind: str) -> None:
    async with vfio_machine_at(backend.path) as machine:
        payload = set_irqs(0x14, PciIrq.INTX, 0, 1)
        with garbage(kind) as fd, pytest.raises(RefusedCommandError) as caught:
            await machine.client.ask(Command.DEVICE_SET_IRQS, payload, fds=[fd])
        assert caught.value.args[1] == errno.EINVAL
        await machine.start()
        await machine.inflate(FREE[0])
    await still_serves(backend)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_an_unmask_whose_other_end_is_gone(backend: VfioBackend, kind: str) -> None:
    async with vfio_machine_at(backend.path) as machine:
        payload = set_irqs(0x14, PciIrq.INTX, 0, 1)
        with garbage(kind) as fd:
            await machine.client.ask(Command.DEVICE_SET_IRQS, payload, fds=[fd])
        await machine.start()
        await machine.inflate(FREE[0])
    await still_serves(backend)


async def test_an_unmask_eventfd_raises_intx_again(tmp_path: Path, eventfd: int) -> None:
    async with (
        vfio_backend_at(tmp_path / "s", Variant.INTX) as backend,
        vfio_machine_at(backend.path) as machine,
    ):
        payload = set_irqs(0x14, PciIrq.INTX, 0, 1)
        await machine.client.ask(Command.DEVICE_SET_IRQS, payload, fds=[eventfd])
        await machine.start()
        backend.device.set_target(RAM_BYTES // 2)
        await machine.client.interrupted(0, PciIrq.INTX)
        os.eventfd_write(eventfd, 1)
        await machine.client.interrupted(0, PciIrq.INTX)


# Memory


@pytest.mark.parametrize("kind", KINDS)
async def test_memory_that_is_no_memory_is_refused(backend: VfioBackend, kind: str) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        with garbage(kind) as fd:
            for _ in range(3):
                with pytest.raises(RefusedCommandError):
                    await machine.client.ask(Command.DMA_MAP, dma_map(1 << 32, PAGE_SIZE), fds=[fd])
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}


@pytest.mark.parametrize(
    ("address", "size", "offset"),
    [
        (1 << 32, 2 * RAM_BYTES, 0),
        (1 << 32, PAGE_SIZE, RAM_BYTES),
        ((1 << 32) + 1, PAGE_SIZE, 0),
        (1 << 32, PAGE_SIZE, 1),
        (1 << 32, 100, 0),
        (1 << 60, PAGE_SIZE, 0),
        (PAGE_SIZE, PAGE_SIZE, 0),
    ],
)
async def test_a_map_beyond_its_file_or_over_another_is_refused(
    backend: VfioBackend, address: int, size: int, offset: int
) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        fd = machine.ram.regions[0].fd
        payload = dma_map(address, size, offset)
        with pytest.raises(RefusedCommandError):
            await machine.client.ask(Command.DMA_MAP, payload, fds=[fd])
        with pytest.raises(RefusedCommandError):
            await machine.client.ask(Command.DMA_UNMAP, dma_unmap(address, size))
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}


async def test_everything_is_unmapped_at_once(backend: VfioBackend) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        before = len(open_fds())
        whole = list(machine.client.ranges)
        await machine.client.ask(Command.DMA_UNMAP, dma_unmap(0, 0, flags=2))
        assert len(open_fds()) == before - 2  # the region's and its mapping's
        machine.client.ranges.clear()
        await machine.client.map(*whole)
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}


async def test_addresses_outside_of_the_maps_are_not_touched(backend: VfioBackend) -> None:
    """A file larger than what is mapped of it: the device keeps to the map."""
    async with vfio_machine_at(backend.path, blocks=(RamBlock(0, RAM_BYTES),)) as machine:
        fd = machine.ram.regions[0].fd
        machine.ram.fill()
        await machine.client.unmap(*machine.client.ranges)
        half = RAM_BYTES // 2
        await machine.client.map(Range(0, half, 0, fd))
        await machine.start()
        await machine.inflate(half // PAGE_SIZE, half // PAGE_SIZE - 1, 0xFFFFFFFF)
        await machine.report(half // PAGE_SIZE - 1, 8)
        untouched = machine.ram.read(half, RAM_BYTES - half)
        assert untouched == b"\xa5" * (RAM_BYTES - half)
        assert machine.ram.read(half - PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)


# Accesses


@pytest.mark.parametrize("variant", list(Variant))
async def test_accesses_of_every_size_anywhere(tmp_path: Path, variant: Variant) -> None:
    choose = random.Random(11)
    async with (
        vfio_backend_at(tmp_path / "s", variant) as backend,
        vfio_machine_at(backend.path) as machine,
    ):
        await machine.start()
        for _ in range(500):
            region = choose.choice([0, 1, 2, 6, 7, 8])
            offset = choose.choice([choose.randrange(0x5000), choose.randrange(0x40), 1 << 63])
            size = choose.choice([0, 1, 2, 3, 4, 5, 8, 64])
            with suppress(RefusedCommandError):
                await machine.client.ask(
                    Command.REGION_READ, access(region, offset, size), room=16 + size
                )
            with suppress(RefusedCommandError):
                payload = access(region, offset, size, choose.randbytes(size))
                await machine.client.ask(Command.REGION_WRITE, payload)
        await machine.client.reset()
        await machine.start()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}


async def test_a_read_never_waits(backend: VfioBackend) -> None:
    """Beyond the region: refused. Of what does not exist inside of it: zeros."""
    async with vfio_machine_at(backend.path) as machine:
        for region, offset, size in ((0, 0x4000, 4), (0, 0x3FFF, 2), (5, 0, 1), (9, 0, 1)):
            with pytest.raises(RefusedCommandError):
                await machine.client.ask(
                    Command.REGION_READ, access(region, offset, size), room=16 + size
                )
        assert await machine.client.read(0, 0x900, 64) == bytes(64)


async def test_a_reset_among_several_writes_ends_what_came_before(backend: VfioBackend) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        machine.queues[INFLATE].add_out(FREE[0].to_bytes(4, "little"))
        payload = multi((0, 0x3000, b"\0\0"), (0, 0x14, b"\0"))
        with suppress(RefusedCommandError):
            await machine.client.ask(Command.REGION_WRITE_MULTI, payload)
            assert backend.held == set()
            assert not backend.device.is_running

"""Memory that changes and rings that break, under a QEMU-like front-end and under others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast_protocol.vhost_user.message import ProtocolFeature, Request, U64Payload
from ballast_protocol.virtio.balloon import BalloonQueue
from support.backend import Backend, backend_at, until
from support.driver import PAGE_SIZE, GuestRam, RamBlock, Segment
from support.fds import none_left_open
from support.frontend import QEMU_PROTOCOL_FEATURES
from support.link import RefusedError
from support.machine import FREE, PAGES, RAM_BYTES, Machine, machine_at
from support.pages import MarkedPages

FEATURE = ProtocolFeature


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    with none_left_open():
        async with backend_at(tmp_path / "s") as backend:
            yield backend


@pytest.fixture
async def machine(backend: Backend) -> AsyncIterator[Machine]:
    async with machine_at(backend.path) as machine:
        yield machine


# Memory


DIMM = RamBlock(1 << 32, RAM_BYTES)
DIMM_PAGE = (1 << 32) // PAGE_SIZE


@pytest.mark.parametrize(
    "accept",
    [
        QEMU_PROTOCOL_FEATURES,
        QEMU_PROTOCOL_FEATURES & ~FEATURE.CONFIGURE_MEM_SLOTS,
        QEMU_PROTOCOL_FEATURES & ~FEATURE.REPLY_ACK,
    ],
)
async def test_memory_comes_and_goes_while_the_guest_runs(
    backend: Backend, accept: ProtocolFeature
) -> None:
    backend.device.set_target(RAM_BYTES)
    async with machine_at(backend.path, accept=accept) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        dimm = machine.ram.add(DIMM)
        await machine.frontend.share_memory(machine.ram)
        await machine.frontend.config_changed()
        assert (await machine.config()).num_pages == PAGES
        marked = MarkedPages(machine.ram, range(DIMM_PAGE, DIMM_PAGE + 16))
        await machine.inflate(DIMM_PAGE, DIMM_PAGE + 5, FREE[1])
        assert marked.gone() == {DIMM_PAGE, DIMM_PAGE + 5}
        assert backend.held == {FREE[0], FREE[1], DIMM_PAGE, DIMM_PAGE + 5}
        await machine.deflate(DIMM_PAGE, DIMM_PAGE + 5)
        machine.ram.remove(dimm)
        await machine.frontend.share_memory(machine.ram)
        assert (await machine.config()).num_pages == 0
        await machine.inflate(DIMM_PAGE, FREE[2])
        assert backend.held == {FREE[0], FREE[1], FREE[2]}


async def test_messages_behind_a_change_of_memory_are_not_lost(
    backend: Backend,
) -> None:
    """A front-end without REPLY_ACK does not wait: the next message is there already."""
    accept = QEMU_PROTOCOL_FEATURES & ~FEATURE.REPLY_ACK
    backend.device.set_target(RAM_BYTES)
    async with machine_at(backend.path, accept=accept) as machine:
        await machine.start()
        await machine.config()
        for _ in range(20):
            dimm = machine.ram.add(DIMM)
            async with machine.frontend.lock:
                await machine.frontend._share_memory(machine.ram)
                features = await machine.frontend.ask_u64(Request.GET_FEATURES)
            assert features == machine.frontend.features_offered
            machine.ram.remove(dimm)
            await machine.frontend.share_memory(machine.ram)
        assert (await machine.config()).num_pages == 0
        assert backend.device.ram_bytes == RAM_BYTES


async def test_memory_that_is_not_shared_is_a_problem_for_the_operator(
    backend: Backend, machine: Machine
) -> None:
    # What QEMU does with share=off: no region at all, and the rings start nevertheless.
    with GuestRam.of(RamBlock(0, PAGE_SIZE)) as nothing:
        nothing.remove(nothing.regions[0])
        queues = dict(enumerate(machine.queues.values()))
        await machine.frontend.start(nothing, queues, machine.features)
    await machine.config()
    assert "share=on" in backend.problem
    assert backend.device.metrics.broken_queues == len(machine.queues)
    await machine.pause()


async def test_a_region_that_cannot_be_used_is_refused_and_told(
    backend: Backend, machine: Machine
) -> None:
    item = machine.ram.regions[0]
    with pytest.raises(RefusedError):
        await machine.frontend.tell(
            Request.ADD_MEM_REG, bytes(8) + _beyond(item.region.pack()), (item.fd,)
        )
    assert "memory cannot be used" in backend.problem
    await machine.start()
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}
    assert backend.problem == ""


def _beyond(region: bytes) -> bytes:
    """Return the same region with a file offset beyond its file."""
    return region[:24] + (1 << 30).to_bytes(8, "little")


# Rings


async def test_a_broken_ring_is_reported_and_the_others_live_on(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    machine.queues[BalloonQueue.DEFLATE].publish(1000)
    machine.frontend.kick(machine.index(BalloonQueue.DEFLATE))
    await until(lambda: bool(backend.device.metrics.broken_queues))
    assert "the guest broke queue 1" in backend.problem
    machine.frontend.kick(machine.index(BalloonQueue.DEFLATE))
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}
    assert backend.device.metrics.broken_queues == 1
    await machine.reset()
    await machine.deflate(FREE[0])
    assert backend.problem == ""


async def test_a_broken_guest_does_not_disturb_its_neighbour(tmp_path: Path) -> None:
    async with (
        backend_at(tmp_path / "a") as one,
        backend_at(tmp_path / "b") as two,
        machine_at(one.path) as bad,
        machine_at(two.path) as good,
    ):
        await bad.start()
        await good.start()
        array = bad.ram.allocate(1 << 16)
        bad.ram.write(array, b"\xff\xff\xff\x0f" * (1 << 14))
        driver = bad.queues[BalloonQueue.INFLATE]
        for _ in range(100):
            driver.add(out=[Segment(array, 1 << 16)])
        bad.frontend.kick(0)
        await good.inflate(*FREE[:8])
        assert two.held == set(FREE[:8])
        assert driver.used_waiting < 100
        await bad.done(BalloonQueue.INFLATE)


async def test_kicks_before_enabling_are_not_lost(backend: Backend, machine: Machine) -> None:
    machine.queues[BalloonQueue.INFLATE].add_out(FREE[0].to_bytes(4, "little"))
    await machine.start()
    await machine.frontend.called(0)
    assert backend.held == {FREE[0]}


async def test_a_ring_that_is_disabled_and_enabled_again(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.frontend._enable_rings(False)
    machine.queues[BalloonQueue.INFLATE].add_out(FREE[0].to_bytes(4, "little"))
    machine.frontend.kick(0)
    await machine.config()
    await asyncio.sleep(0)
    assert backend.held == set()
    await machine.frontend._enable_rings(True)
    await machine.frontend.called(0)
    assert backend.held == {FREE[0]}


async def test_the_dirty_log_of_a_rate_measurement_changes_nothing(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.inflate(*FREE[:4])
    for enabled in (True, False):
        await machine.frontend.log_dirty_pages(enabled)
        await machine.inflate(*FREE[4:8])
    assert backend.held == set(FREE[:8])
    await machine.frontend.stop()


async def test_ring_addresses_do_not_move_while_the_ring_runs(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    frontend = machine.frontend
    moved = frontend._addresses(0, machine.queues[BalloonQueue.DEFLATE])
    with pytest.raises(RefusedError):
        await frontend.tell(Request.SET_VRING_ADDR, moved.pack())
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}


async def test_reset_device_makes_the_next_start_a_fresh_one(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.inflate(*FREE[:4])
    bases = await machine.pause()
    assert bases[0] == 1
    await machine.frontend.tell(Request.RESET_DEVICE)
    await machine.resume()
    assert backend.held == set()


async def test_front_ends_that_enable_each_ring_by_itself(
    backend: Backend, machine: Machine
) -> None:
    """crosvm and others send SET_VRING_ENABLE before they describe the next ring."""
    frontend = machine.frontend
    payload = U64Payload(machine.features | 1 << 30).pack()
    await frontend.post(Request.SET_FEATURES, payload)
    await frontend.share_memory(machine.ram)
    for index, queue in enumerate(machine.queues.values()):
        await frontend._start_ring(index, queue, 0)
        await frontend.tell(Request.SET_VRING_ENABLE, index.to_bytes(4, "little") + b"\1\0\0\0")
    frontend._queues = dict(enumerate(machine.queues.values()))
    await machine.inflate(*FREE[:4])
    await machine.deflate(*FREE[:2])
    assert backend.held == set(FREE[2:4])
    await machine.pause()


async def test_front_ends_without_protocol_features(backend: Backend, machine: Machine) -> None:
    """Without bit 30 all rings are enabled at once, and the first kick starts them."""
    frontend = machine.frontend
    await frontend.post(Request.SET_FEATURES, U64Payload(machine.features).pack())
    await frontend.share_memory(machine.ram)
    for index, queue in enumerate(machine.queues.values()):
        await frontend._start_ring(index, queue, 0)
        frontend.kick(index)
    await machine.inflate(*FREE[:4])
    await machine.deflate(*FREE[:2])
    assert backend.held == set(FREE[2:4])


async def test_a_new_kick_descriptor_does_not_lose_the_kick_of_the_old_one(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    frontend = machine.frontend
    await machine.config()
    machine.queues[BalloonQueue.INFLATE].add_out(FREE[0].to_bytes(4, "little"))
    # No kick on either: the old descriptor may be closed with the kick still in it.
    await frontend._send_fresh_eventfd(Request.SET_VRING_KICK, 0)
    await frontend.called(0)
    assert backend.held == {FREE[0]}


async def test_status_tells_of_the_connection(backend: Backend, machine: Machine) -> None:
    await machine.start()
    status = backend.server.status()
    connection = status["connection"]
    assert isinstance(connection, dict)
    assert connection["memory-regions"] == 1
    assert [ring["index"] for ring in connection["rings"]] == [0, 1, 2, 3]
    assert all(ring["used-address"] > ring["avail-address"] for ring in connection["rings"])
    assert connection["running"] is True

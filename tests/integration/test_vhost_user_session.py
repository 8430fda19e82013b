"""A whole vhost-user session: a QEMU-like front-end, real rings, real memory, real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast_protocol.vhost_user.message import ProtocolFeature
from ballast_protocol.virtio.balloon import BalloonConfig, BalloonFeature, BalloonQueue
from ballast_protocol.virtio.features import VirtioFeature
from support.backend import Backend, backend_at, until
from support.driver import PAGE_SIZE
from support.fds import none_left_open
from support.frontend import QEMU_PROTOCOL_FEATURES
from support.machine import FREE, PAGES, RAM_BYTES, Machine, machine_at
from support.pages import MarkedPages

FEATURE = ProtocolFeature
EVENT_IDX = int(VirtioFeature.EVENT_IDX)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    with none_left_open():
        async with backend_at(tmp_path / "s") as backend:
            yield backend


@pytest.fixture
async def machine(backend: Backend) -> AsyncIterator[Machine]:
    async with machine_at(backend.path) as machine:
        yield machine


# The data path


async def test_handshake_offers_what_qemu_needs(machine: Machine) -> None:
    frontend = machine.frontend
    assert frontend.queue_num == 5
    assert frontend.mem_slots >= 32
    assert frontend.features_offered & VirtioFeature.VERSION_1
    assert not frontend.features_offered & VirtioFeature.ACCESS_PLATFORM
    assert not frontend.protocol_features & (FEATURE.LOG_SHMFD | FEATURE.INFLIGHT_SHMFD)


@pytest.mark.parametrize(
    ("accept", "event_idx"),
    [
        (QEMU_PROTOCOL_FEATURES, True),
        (QEMU_PROTOCOL_FEATURES, False),
        (QEMU_PROTOCOL_FEATURES & ~FEATURE.REPLY_ACK, True),
        (QEMU_PROTOCOL_FEATURES & ~FEATURE.CONFIGURE_MEM_SLOTS, True),
        (QEMU_PROTOCOL_FEATURES & ~FEATURE.BACKEND_REQ, True),
        (FEATURE.CONFIG, True),
        (FEATURE.CONFIG, False),
    ],
)
async def test_every_queue_works_for_every_front_end(
    backend: Backend, accept: ProtocolFeature, event_idx: bool
) -> None:
    features = backend.device.offered & ~(0 if event_idx else EVENT_IDX)
    async with machine_at(backend.path, accept=accept, features=features) as machine:
        marked = MarkedPages(machine.ram, FREE)
        await machine.start()
        await machine.inflate(*reversed(FREE[:256]))
        await machine.set_actual(256)
        assert backend.held == set(FREE[:256]) == marked.gone()
        await machine.deflate(*FREE[:100])
        await machine.set_actual(156)
        await machine.report(FREE[300], 8)
        machine.offer_statistics(12345)
        assert await machine.config() == BalloonConfig(actual=156)
        assert backend.held == set(FREE[100:256])
        assert backend.device.actual_bytes == RAM_BYTES - 156 * PAGE_SIZE
        assert marked.lost(allowed=[*FREE[:256], *FREE[300:308]]) == set()
        await until(lambda: backend.device.statistics.values == {4: 12345})
        await machine.pause()
    await backend.alone()


async def test_a_target_reaches_the_guest(backend: Backend, machine: Machine) -> None:
    await machine.start()
    backend.device.set_target(RAM_BYTES // 2)
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == PAGES // 2


async def test_a_target_from_before_is_there_when_the_guest_looks(backend: Backend) -> None:
    backend.device.set_target(RAM_BYTES // 4)
    async with machine_at(backend.path) as machine:
        await machine.start()
        assert (await machine.config()).num_pages == PAGES * 3 // 4


async def test_statistics_on_demand(backend: Backend, machine: Machine) -> None:
    assert not backend.server.request_statistics()
    await machine.start()
    machine.offer_statistics(1)
    await until(lambda: bool(backend.server.request_statistics()))
    await machine.frontend.called(machine.index(BalloonQueue.STATS))
    machine.offer_statistics(2)
    await until(lambda: backend.device.statistics.values == {4: 2})


# Pause and reset


async def test_a_pause_keeps_everything(backend: Backend, machine: Machine) -> None:
    await machine.start()
    for start in range(0, 40, 10):
        await machine.inflate(*FREE[start : start + 10])
    await machine.set_actual(40)
    bases = await machine.pause()
    assert (bases[0], bases[1]) == (4, 0)
    assert not backend.device.is_running
    await machine.resume()
    await machine.inflate(FREE[50])
    assert backend.held == {*FREE[:40], FREE[50]}
    assert (await machine.config()).actual == 40


async def test_a_reset_clears_everything(backend: Backend, machine: Machine) -> None:
    await machine.start()
    await machine.inflate(*FREE[:40])
    await machine.set_actual(40)
    await machine.reset()
    assert await machine.config() == BalloonConfig()
    assert backend.held == set()
    await machine.inflate(FREE[3])
    assert backend.held == {FREE[3]}


async def test_a_reset_into_other_features_clears_everything(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.inflate(*FREE[:4])
    await machine.pause()
    machine.features &= ~int(BalloonFeature.STATS_VQ)
    del machine.queues[BalloonQueue.STATS]
    await machine.resume()
    marked = MarkedPages(machine.ram, FREE)
    await machine.report(FREE[7], 1)  # at index 2 now
    assert (backend.held, marked.gone()) == (set(), {FREE[7]})


async def test_a_config_of_before_the_reboot_is_not_believed(
    backend: Backend, machine: Machine
) -> None:
    backend.device.set_target(RAM_BYTES // 2)
    await machine.start()
    await machine.inflate(*FREE[:40])
    await machine.set_actual(40)
    stale = await machine.config()
    backend.device.set_target(RAM_BYTES)
    await machine.pause()
    blob = BalloonConfig(stale.num_pages, stale.actual, 0, poison_val=0xAAAAAAAA)
    await machine.frontend.write_config(blob.pack())
    await machine.resume()  # not even if the rings look the same
    assert await machine.config() == BalloonConfig(poison_val=0xAAAAAAAA)
    assert backend.held == set()


async def test_a_pause_gives_the_statistics_buffer_back_unread(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    machine.offer_statistics(1)
    await until(lambda: bool(backend.listener.statistics))
    updated = backend.device.statistics.last_update
    index = machine.index(BalloonQueue.STATS)
    assert (await machine.pause())[index] == 0
    assert machine.queues[BalloonQueue.STATS].used_waiting == 0
    await machine.resume()
    await machine.config()
    assert backend.device.statistics.held_head is not None
    assert backend.device.statistics.last_update == updated
    assert backend.server.request_statistics()
    assert len(await machine.done(BalloonQueue.STATS)) == 1


async def test_buffers_added_during_a_pause_are_served_afterwards(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.pause()
    machine.queues[BalloonQueue.INFLATE].add_out(FREE[0].to_bytes(4, "little"))
    await machine.config()
    assert backend.held == set()
    await machine.resume()
    await machine.frontend.called(0)
    assert backend.held == {FREE[0]}


async def test_hundreds_of_pauses_in_the_middle_of_inflation(
    backend: Backend, machine: Machine
) -> None:
    marked = MarkedPages(machine.ram, FREE)
    await machine.start()
    for number, pfn in enumerate(FREE[:200]):
        machine.queues[BalloonQueue.INFLATE].add_out(pfn.to_bytes(4, "little"))
        if number % 3:
            machine.frontend.kick(0)
        await machine.pause()
        await machine.resume()
        machine.queues[BalloonQueue.INFLATE].collect()
    await machine.done(BalloonQueue.INFLATE)
    assert backend.held == set(FREE[:200]) == marked.gone()
    assert marked.lost(allowed=FREE[:200]) == set()


# Unplugging and plugging in


async def test_unplug_and_plug_in_on_the_same_connection(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.inflate(*FREE[:8])
    await machine.set_actual(8)
    for _ in range(3):
        await machine.set_actual(0)
        await machine.pause()
        await machine.frontend.handshake()
        assert (backend.held, backend.device.actual_bytes) == (set(), None)
        for queue in machine.queues.values():
            queue.reset()
        await machine.start()
        await machine.inflate(FREE[9])
        assert backend.held == {FREE[9]}
        backend.device.set_target(RAM_BYTES // 2)
        await machine.frontend.config_changed()
        backend.device.set_target(RAM_BYTES)
        await machine.frontend.config_changed()


async def test_a_second_machine_after_the_first(backend: Backend) -> None:
    for _ in range(3):
        async with machine_at(backend.path) as machine:
            await machine.start()
            await machine.inflate(*FREE[:8])
            assert backend.held == set(FREE[:8])
        await backend.alone()
        assert (backend.held, backend.device.ram_bytes) == (set(), 0)

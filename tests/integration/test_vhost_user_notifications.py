"""Config notifications under everything that could make them kill QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.balloon.features import DEFAULT_FEATURES
from ballast.balloon.hinting import HintState
from ballast.streams.unix import MessageSocket
from ballast_protocol.vhost_user.message import ProtocolFeature
from ballast_protocol.virtio.balloon import BalloonFeature, BalloonQueue, HintCommand
from support.backend import Backend, backend_at, until
from support.driver import PAGE_SIZE, RamBlock
from support.fds import none_left_open
from support.frontend import QEMU_PROTOCOL_FEATURES
from support.machine import PAGES, RAM_BYTES, Machine, machine_at

CYCLES = 300


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    with none_left_open():
        features = DEFAULT_FEATURES | BalloonFeature.FREE_PAGE_HINT
        async with backend_at(tmp_path / "s", features) as backend:
            yield backend


@pytest.fixture
async def machine(backend: Backend) -> AsyncIterator[Machine]:
    async with machine_at(backend.path) as machine:
        yield machine


def target(pages: int) -> int:
    """Return the size at which `num_pages` reads as `pages`."""
    return RAM_BYTES - pages * PAGE_SIZE


async def hammer(backend: Backend, end: asyncio.Event) -> int:
    """Set targets as fast as the loop turns."""
    number = 0
    while not end.is_set():
        number += 1
        backend.device.set_target(target(1 + number % 1000))
        await asyncio.sleep(0)
    return number


@pytest.mark.parametrize(
    "accept", [QEMU_PROTOCOL_FEATURES, QEMU_PROTOCOL_FEATURES & ~ProtocolFeature.REPLY_ACK]
)
@pytest.mark.parametrize("anew", [False, True], ids=["pauses", "resets"])
async def test_targets_at_any_moment_never_kill_qemu(
    backend: Backend, accept: ProtocolFeature, anew: bool
) -> None:
    async with machine_at(backend.path, accept=accept) as machine:
        await machine.start()
        end = asyncio.Event()
        hammering = asyncio.create_task(hammer(backend, end))
        for cycle in range(CYCLES):
            if anew and cycle % 2:
                await machine.reset()
            else:
                await machine.pause()
                await machine.resume()
            if cycle % 3 == 0:
                await machine.config()
            assert machine.frontend.crash is None
        end.set()
        assert await hammering > CYCLES
        backend.device.set_target(target(7))
        while (await machine.config()).num_pages != 7:
            await machine.frontend.config_changed()
        sent = backend.notifications["sent"]
        assert sent >= machine.frontend.config_changes > 0
        assert backend.notifications["cancelled"] >= machine.frontend.cancelled


async def test_a_notification_that_meets_a_pause_is_called_off_and_comes_afterwards(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.config()
    frontend = machine.frontend
    async with frontend.lock:  # QEMU's main loop is busy: it does not look at the channel
        backend.device.set_target(target(5))
        await until(lambda: backend.notifications["sent"] == 0)
        await asyncio.sleep(0)
        pausing = asyncio.create_task(machine.pause())
        await asyncio.sleep(0)
    await pausing
    await until(lambda: backend.notifications["sent"] + backend.notifications["cancelled"] == 1)
    if backend.notifications["cancelled"]:
        assert frontend.config_changes == 0
        await machine.resume()
        await frontend.config_changed()
    assert frontend.crash is None
    assert backend.notifications["sent"] == frontend.config_changes == 1


async def test_a_target_set_during_a_pause_is_told_after_it(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.pause()
    for pages in (1, 2, 3):
        backend.device.set_target(target(pages))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (machine.frontend.config_changes, machine.frontend.cancelled) == (0, 0)
    await machine.resume()
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == 3
    assert backend.notifications == {"sent": 1, "cancelled": 0}


async def test_targets_in_one_turn_are_one_notification(backend: Backend, machine: Machine) -> None:
    await machine.start()
    for pages in range(100):
        backend.device.set_target(target(pages))
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == 99
    assert backend.notifications["sent"] == 1


async def test_a_target_before_anybody_came_needs_no_notification(tmp_path: Path) -> None:
    async with backend_at(tmp_path / "s") as backend:
        backend.device.set_target(target(5))
        async with machine_at(backend.path) as machine:
            await machine.start()
            assert (await machine.config()).num_pages in (0, 5)
            assert machine.frontend.crash is None
        await backend.alone()


async def test_without_a_channel_the_guest_learns_at_its_next_look(backend: Backend) -> None:
    accept = QEMU_PROTOCOL_FEATURES & ~ProtocolFeature.BACKEND_REQ
    async with machine_at(backend.path, accept=accept) as machine:
        await machine.start()
        backend.device.set_target(target(4))
        assert (await machine.config()).num_pages == 4
        assert backend.notifications == {"sent": 0, "cancelled": 0}


async def test_a_channel_that_qemu_closes_is_missed_by_nobody(
    backend: Backend, machine: Machine
) -> None:
    await machine.start()
    await machine.frontend._close_channel()
    backend.device.set_target(target(4))
    assert (await machine.config()).num_pages == 4
    backend.device.set_target(target(6))
    assert (await machine.config()).num_pages == 6
    await machine.pause()
    await machine.resume()


async def test_a_new_channel_takes_over_what_the_old_one_owed(
    backend: Backend, machine: Machine
) -> None:
    """The device was unplugged and plugged in with a target still to be told."""
    await machine.start()
    await machine.pause()
    backend.device.set_target(target(4))
    await machine.frontend.handshake()
    for queue in machine.queues.values():
        queue.reset()
    await machine.start()
    await machine.frontend.config_changed()
    backend.device.set_target(target(5))
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == 5
    await machine.pause()


async def test_a_round_of_hints_ended_by_the_guest_may_meet_a_pause(
    backend: Backend, machine: Machine
) -> None:
    """The device notifies while a ring is served, and the front-end's stop is there already."""
    await machine.start()
    index = machine.index(BalloonQueue.FREE_PAGE_HINT)
    driver = machine.queues[BalloonQueue.FREE_PAGE_HINT]
    for _ in range(20):
        backend.device.start_hinting()
        await machine.frontend.config_changed()
        command = (await machine.config()).free_page_hint_cmd_id
        driver.add_out(command.to_bytes(4, "little"))
        driver.add_out(HintCommand.STOP.to_bytes(4, "little"))
        machine.frontend.kick(index)
        await machine.pause()
        assert backend.device.hinting.state in (HintState.REQUESTED, HintState.DONE)
        await machine.resume()
        await machine.done(BalloonQueue.FREE_PAGE_HINT)
        assert backend.device.hinting.state is HintState.DONE
        while (await machine.config()).free_page_hint_cmd_id != HintCommand.DONE:
            await machine.frontend.config_changed()
    assert backend.device.metrics.malformed_chains == 0
    assert backend.device.metrics.broken_queues == 0


async def test_a_machine_that_grew_during_a_pause_is_told(
    backend: Backend, machine: Machine
) -> None:
    backend.device.set_target(RAM_BYTES)
    await machine.start()
    assert (await machine.config()).num_pages == 0
    await machine.pause()
    machine.ram.add(RamBlock(1 << 32, RAM_BYTES))
    await machine.frontend.share_memory(machine.ram)
    await machine.resume()
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == PAGES


async def test_a_front_end_that_never_pauses_is_not_waited_for(
    backend: Backend, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a notification everything that has arrived is served; this must come to an end."""
    await machine.start()
    await machine.config()
    looks = 0

    def always_more(_socket: MessageSocket) -> bool:
        nonlocal looks
        looks += 1
        return looks < 10_000

    with monkeypatch.context() as patch:
        patch.setattr(MessageSocket, "has_input", always_more)
        backend.device.set_target(target(5))
        await until(lambda: looks > 0)
    assert looks < 1000
    assert backend.notifications == {"sent": 0, "cancelled": 0}
    assert (await machine.config()).num_pages == 5

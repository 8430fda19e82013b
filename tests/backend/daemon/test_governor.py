"""The governor's loop on a device, a transport and a front-end that plays a guest."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import ballast
from ballast.daemon.config import VmConfig
from ballast.daemon.governor import GovernorLoop
from ballast.daemon.paths import VmPaths
from ballast.daemon.vm import VirtualMachine
from ballast.policy.governor import KEPT_RESULTS, Governor, HeldError, InhibitedError
from ballast.policy.resize import OnFailure, Outcome, ResizeRequest
from ballast.policy.snapshot import snapshot
from ballast_protocol.errors import OperatorError
from support.balloon_control import MIB, FakeBalloonControl
from support.driver import PAGE_SIZE
from support.fds import none_left_open
from support.machine import FREE, RAM_BYTES, Machine, machine_at
from support.pages import MarkedPages
from support.qmp_peer import qmp_client

PATIENCE = 20.0
FEW = RAM_BYTES - 16 * PAGE_SIZE
LONG = 3600.0


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    return VmPaths("vm", tmp_path)


@pytest.fixture
async def vm(paths: VmPaths) -> AsyncIterator[VirtualMachine]:
    with none_left_open():
        vm = VirtualMachine(VmConfig(name="vm"), paths=paths)
        await vm.start()
        yield vm
        await vm.close()


@pytest.fixture
async def machine(vm: VirtualMachine) -> AsyncIterator[Machine]:
    async with machine_at(vm.paths.vhost_user) as machine:
        await machine.start()
        await machine.config()
        yield machine


async def give(machine: Machine, count: int) -> None:
    """Do what a driver does that is asked for `count` pages."""
    await machine.inflate(*FREE[:count])
    await machine.set_actual(count)


async def test_a_resize_is_reached_when_the_guest_says_so(
    vm: VirtualMachine, machine: Machine
) -> None:
    resizing = asyncio.create_task(vm.governor.resize(ResizeRequest(FEW, LONG)))
    await machine.frontend.config_changed()
    assert (await machine.config()).num_pages == 16
    await give(machine, 16)
    async with asyncio.timeout(PATIENCE):
        result = await resizing
    assert (result.outcome, result.initial_bytes, result.final_bytes) == (
        Outcome.REACHED,
        RAM_BYTES,
        FEW,
    )
    assert vm.governor.status()["last"] == result.as_dict()
    assert await vm.governor.wait(result.id) is result


async def test_operators_hear_of_progress_and_of_the_end(
    vm: VirtualMachine, machine: Machine
) -> None:
    async with qmp_client(vm.paths.qmp) as client:
        number = vm.governor.start_resize(ResizeRequest(FEW, LONG))
        await give(machine, 16)
        names: list[str] = []
        data: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE):
            while "BALLAST_RESIZE_DONE" not in names:
                event = await client.events.get()
                names.append(str(event["event"]))
                data[names[-1]] = event["data"]
    progress, done = data["BALLAST_RESIZE_PROGRESS"], data["BALLAST_RESIZE_DONE"]
    assert (progress["id"], progress["wanted-bytes"]) == (number, FEW)
    assert (done["id"], done["result"], done["final-bytes"]) == (number, "reached", FEW)


async def test_a_guest_that_never_deflates_is_rolled_back(
    vm: VirtualMachine, machine: Machine
) -> None:
    vm.set_target(FEW)
    await give(machine, 16)
    request = ResizeRequest(RAM_BYTES, LONG, stall_seconds=0.5, on_failure=OnFailure.ROLLBACK)
    async with asyncio.timeout(PATIENCE):
        result = await vm.governor.resize(request)
    assert (result.outcome, result.is_rolled_back) == (Outcome.STALLED, True)
    assert vm.target_bytes == FEW
    assert (await machine.config()).num_pages == 16


async def test_a_time_out_without_a_guest(vm: VirtualMachine) -> None:
    async with asyncio.timeout(PATIENCE):
        result = await vm.governor.resize(ResizeRequest(FEW, 0.1))
    assert result.outcome is Outcome.TIMED_OUT
    assert vm.target_bytes == FEW


async def test_qemu_goes_in_the_middle(vm: VirtualMachine) -> None:
    async with machine_at(vm.paths.vhost_user) as machine:
        await machine.start()
        await machine.config()
        resizing = asyncio.create_task(vm.governor.resize(ResizeRequest(FEW, LONG)))
        await machine.frontend.config_changed()
    async with asyncio.timeout(PATIENCE):
        assert (await resizing).outcome is Outcome.DISCONNECTED


async def test_who_waits_no_longer_does_not_end_the_resize(
    vm: VirtualMachine, machine: Machine
) -> None:
    waiting = asyncio.create_task(vm.governor.resize(ResizeRequest(FEW, LONG)))
    await machine.config()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await give(machine, 16)
    async with asyncio.timeout(PATIENCE):
        assert (await vm.governor.wait(1)).outcome is Outcome.REACHED


async def test_an_unknown_resize_cannot_be_waited_for() -> None:
    governor = FakeBalloonControl().governor
    for _ in range(KEPT_RESULTS + 1):
        await governor.resize(ResizeRequest(MIB))
    assert (await governor.wait(2)).is_reached
    for number in (1, 99):
        with pytest.raises(OperatorError, match="no resize"):
            await governor.wait(number)


async def test_an_end_of_service_ends_the_waiting(vm: VirtualMachine, machine: Machine) -> None:
    waiting = asyncio.create_task(vm.governor.resize(ResizeRequest(FEW, LONG)))
    await machine.config()
    vm.governor.close()
    with pytest.raises(OperatorError, match="no longer served"):
        await waiting


async def test_num_pages_moves_in_steps(paths: VmPaths) -> None:
    vm = VirtualMachine(
        VmConfig.model_validate({"name": "vm", "target": RAM_BYTES // 2, "inflate_rate": "4M"}),
        paths=paths,
    )
    await vm.start()
    try:
        async with machine_at(vm.paths.vhost_user) as machine:
            await machine.start()
            # Paced from the driver's first look on, although the target was there before it.
            assert (await machine.config()).num_pages == 0
            seen: list[int] = []
            while (asked := (await machine.config()).num_pages) < RAM_BYTES // 2 // PAGE_SIZE:
                if not seen or asked != seen[-1]:
                    seen.append(asked)
                await machine.set_actual(asked)
                await asyncio.sleep(0.01)
            assert len(seen) >= 4
            assert vm.target_bytes == RAM_BYTES // 2
            await machine.reset()
            assert (await machine.config()).num_pages < asked
            # Given back at once, whatever the limit.
            vm.set_target(RAM_BYTES)
            assert (await machine.config()).num_pages == 0
    finally:
        await vm.close()


async def test_a_hold(vm: VirtualMachine, machine: Machine) -> None:
    vm.set_target(FEW)
    vm.governor.hold("a backup runs")
    with pytest.raises(HeldError, match="a backup runs"):
        vm.set_target(RAM_BYTES)
    assert (await machine.config()).num_pages == 16
    assert vm.governor.status()["hold"] == {"enabled": True, "reason": "a backup runs"}
    vm.governor.hold(None)
    vm.set_target(RAM_BYTES)
    assert (await machine.config()).num_pages == 0


# Inhibit


async def test_nothing_goes_back_while_inhibited_and_the_books_stay_exact(
    vm: VirtualMachine, machine: Machine
) -> None:
    marked = MarkedPages(machine.ram, FREE)
    await machine.inflate(*FREE[:8])
    vm.governor.inhibit("a GPU has the memory")
    with pytest.raises(InhibitedError, match="a GPU has the memory"):
        vm.governor.start_resize(ResizeRequest(FEW))
    await machine.inflate(*FREE[8:16])
    await machine.report(FREE[32], 8)
    assert marked.gone() == set(FREE[:8])
    assert vm.ledger_runs() == [(FREE[0], 16)]
    ledger = vm.status()["ledger"]
    assert isinstance(ledger, dict)
    assert ledger["kept-bytes"] == 8 * PAGE_SIZE
    assert vm.device.metrics.inhibited_bytes == 16 * PAGE_SIZE

    vm.governor.inhibit(None)
    # What was handed over meanwhile is not touched: the guest may be using it by now.
    assert marked.gone() == set(FREE[:8])
    await machine.inflate(*FREE[12:20])
    assert marked.gone() == {*FREE[:8], *FREE[12:20]}
    assert vm.device.pages.kept.count == 4
    await machine.deflate(*FREE[:20])
    assert (vm.ledger_bytes, vm.device.pages.kept.count) == (0, 0)


async def test_a_new_driver_has_given_up_nothing(vm: VirtualMachine, machine: Machine) -> None:
    vm.governor.inhibit("")
    await machine.inflate(*FREE[:8])
    await machine.reset()
    await machine.config()
    assert vm.device.pages.kept.count == 0
    assert vm.device.pages.is_inhibited


async def test_inhibited_from_the_start(paths: VmPaths) -> None:
    vm = VirtualMachine(VmConfig(name="vm", inhibit=True, target=FEW), paths=paths)
    assert vm.device.pages.is_inhibited
    assert vm.device.target_bytes == FEW
    assert vm.governor.status()["inhibit"] == {
        "enabled": True,
        "reason": "the configuration says so",
    }


# A successor


async def test_a_successor_asks_for_the_same_and_ends_the_resize() -> None:
    saved: list[object] = []
    first = FakeBalloonControl(actual_bytes=512 * MIB, follows=False)
    before = GovernorLoop(first, Governor(), save=saved.append)
    before.hold("first")
    before.hold(None)
    number = before.start_resize(ResizeRequest(256 * MIB, LONG))
    before.inhibit("pinned")
    before.start_resize(ResizeRequest(4096 * MIB, LONG))
    second = FakeBalloonControl(actual_bytes=512 * MIB, follows=False)
    governor = Governor()
    after = GovernorLoop(second, governor)
    values = saved[-1]
    assert isinstance(values, dict)
    after.begin(values)
    assert snapshot(governor) == values
    assert second.is_inhibited
    assert second.target_bytes == 2048 * MIB
    second.actual_bytes = 2048 * MIB
    after.look_soon()
    async with asyncio.timeout(PATIENCE):
        assert (await after.wait(number + 1)).is_reached
    before.close()
    after.close()


async def test_values_that_cannot_be_read_are_refused() -> None:
    vm = FakeBalloonControl()
    with pytest.raises(OperatorError, match="saved target"):
        vm.governor.begin({"version": 1})


async def test_a_target_that_nobody_watches_is_looked_at_with_the_status() -> None:
    vm, now = FakeBalloonControl(follows=False), 100.0
    governor = GovernorLoop(vm, Governor(), clock=lambda: now)
    governor.set_target(512 * MIB)
    for state, actual in (("moving", 1500), ("moving", 1000), ("stalled", 1000), ("settled", 512)):
        now += 60
        vm.actual_bytes = actual * MIB
        assert governor.status()["guest"] == state


# Nobody else


def test_only_the_governor_s_vm_sets_the_device_s_target() -> None:
    root = Path(ballast.__file__).parent
    callers = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("device.set_target")
    ]
    assert callers == ["daemon/vm.py"]


async def test_nothing_ticks_while_there_is_nothing_to_do(
    vm: VirtualMachine, machine: Machine
) -> None:
    looks = 0
    observe = vm.observe

    def counted() -> object:
        nonlocal looks
        looks += 1
        return observe()

    vm.set_target(FEW)
    await give(machine, 16)
    vm.observe = counted  # type: ignore[method-assign,assignment]
    for _ in range(3):
        await machine.config()
    assert looks == 0

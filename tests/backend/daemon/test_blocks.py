"""A target that an agent and a kernel share, as the daemon wires them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.blocks import BlocksState
from ballast.daemon.config import VmConfig
from ballast.daemon.paths import VmPaths
from ballast.daemon.vm import VirtualMachine
from ballast.policy import division
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import HelloRequest
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    PAGES_PER_BLOCK,
    BlockCounters,
    Compact,
    CompactDone,
    NodeBlocks,
    Purpose,
    Sweep,
    SweepDone,
)
from support.agent_peer import PATIENCE_SECONDS
from support.backend import until
from support.blocks import span
from support.driver import PAGE_SIZE, RamBlock
from support.fds import none_left_open
from support.machine import Machine, machine_at
from support.qmp_peer import qmp_client
from support.scripted_agent import ScriptedAgent, scripted_agent

RAM_BLOCKS = 16
RAM_BYTES = RAM_BLOCKS * BLOCK_BYTES


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[VirtualMachine]:
    with none_left_open():
        vm = VirtualMachine(VmConfig(name="vm"), paths=VmPaths("vm", tmp_path))
        await vm.start()
        yield vm
        await vm.close()


@pytest.fixture
async def machine(vm: VirtualMachine) -> AsyncIterator[Machine]:
    async with machine_at(vm.paths.vhost_user, blocks=(RamBlock(0, RAM_BYTES),)) as machine:
        await machine.start()
        await machine.config()
        yield machine


@pytest.fixture
async def agent(vm: VirtualMachine, machine: Machine) -> AsyncIterator[ScriptedAgent]:
    async with scripted_agent(vm.paths.agent) as agent:
        await agent.introduce()
        yield agent


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(division, "GRACE_SECONDS", 0.05)


async def kernel_pages(machine: Machine) -> int:
    return (await machine.config()).num_pages


async def kernel_asked_for(machine: Machine, pages: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await kernel_pages(machine) != pages:
            pass


def blocks_status(vm: VirtualMachine) -> dict[str, Any]:
    status: Any = vm.status()["blocks"]
    return dict(status)


async def test_the_agent_takes_whole_blocks_and_the_kernel_the_rest(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    machine.ram.write(4 * BLOCK_BYTES, b"\x55" * 4 * BLOCK_BYTES)
    resident = machine.ram.resident_bytes()
    target = RAM_BYTES - 4 * BLOCK_BYTES - 3 * PAGE_SIZE
    vm.set_target(target)
    await agent.goal_of(4 * BLOCK_BYTES)
    assert await kernel_pages(machine) == 3
    ack = await agent.report(span(4, 4))
    assert (ack.refused, ack.freed_bytes) == ((), 4 * BLOCK_BYTES)
    assert machine.ram.resident_bytes() == resident - 4 * BLOCK_BYTES
    assert vm.actual_bytes == RAM_BYTES - 4 * BLOCK_BYTES
    await machine.inflate(4000 * 2, 4001 * 2, 4002 * 2)
    await machine.set_actual(3)
    assert vm.actual_bytes == vm.target_bytes == target
    status: Any = vm.status()
    assert status["settled"]
    assert status["ledger"]["agent-bytes"] == 4 * BLOCK_BYTES
    assert status["ledger"]["kernel-bytes"] == 3 * PAGE_SIZE
    assert status["ledger"]["bytes"] == RAM_BYTES - target
    assert status["ledger"]["difference-bytes"] == 0
    assert vm.blocks.runs() == [(4 * PAGES_PER_BLOCK, 4 * PAGES_PER_BLOCK)]


async def test_operators_hear_of_what_the_agent_holds(
    vm: VirtualMachine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - BLOCK_BYTES)
    await agent.goal_of(BLOCK_BYTES)
    async with qmp_client(vm.paths.qmp) as client:
        await agent.report(span(4))
        async with asyncio.timeout(PATIENCE_SECONDS):
            event = await client.events.get()
        assert event["event"] == "BALLOON_CHANGE"
        assert event["data"] == {"actual": RAM_BYTES - BLOCK_BYTES}
        assert await client.execute("query-balloon") == {"actual": RAM_BYTES - BLOCK_BYTES}


async def test_what_the_agent_cannot_give_the_kernel_is_asked_for(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - 4 * BLOCK_BYTES)
    await agent.goal_of(4 * BLOCK_BYTES)
    await agent.report(span(4))
    assert await kernel_pages(machine) == 0
    agent.settle(short_reason="nothing more is free")
    await kernel_asked_for(machine, 3 * PAGES_PER_BLOCK)
    assert blocks_status(vm)["agent"]["short-reason"] == "nothing more is free"
    await agent.report(span(5))
    await kernel_asked_for(machine, 2 * PAGES_PER_BLOCK)
    vm.set_target(RAM_BYTES)
    await agent.goal_of(0)
    assert await kernel_pages(machine) == 0
    agent.release(span(4, 2))
    await until(lambda: vm.actual_bytes == RAM_BYTES)


@pytest.mark.usefixtures("_no_patience")
async def test_an_agent_that_stands_still_is_not_waited_for_without_end(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - 2 * BLOCK_BYTES)
    await agent.goal_of(2 * BLOCK_BYTES)
    await kernel_asked_for(machine, 2 * PAGES_PER_BLOCK)


@pytest.mark.usefixtures("_no_patience")
async def test_blocks_of_an_agent_that_has_gone_still_count(
    vm: VirtualMachine, machine: Machine
) -> None:
    async with scripted_agent(vm.paths.agent) as agent:
        await agent.introduce()
        vm.set_target(RAM_BYTES - 4 * BLOCK_BYTES)
        await agent.goal_of(4 * BLOCK_BYTES)
        await agent.report(span(4, 3))
    await kernel_asked_for(machine, PAGES_PER_BLOCK)
    assert vm.actual_bytes == RAM_BYTES - 3 * BLOCK_BYTES
    assert blocks_status(vm)["obstacle"] == "no-qemu"
    async with scripted_agent(vm.paths.agent) as agent:
        await agent.introduce(span(4, 3))
        assert agent.goal_bytes == 4 * BLOCK_BYTES
        await agent.report(span(8))
        await kernel_asked_for(machine, 0)


async def test_a_guest_that_starts_anew_says_again_what_it_holds(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - 2 * BLOCK_BYTES)
    await agent.goal_of(2 * BLOCK_BYTES)
    await agent.report(span(4, 2))
    await machine.inflate(8 * PAGES_PER_BLOCK)  # a ring that was never used looks like a pause
    await machine.reset()
    await agent.hear(HelloRequest)
    assert vm.device.blocks.hold_bytes == 0
    await agent.introduce(span(4, 2), boot_id="b")
    assert vm.device.blocks.hold_bytes == 0
    assert await kernel_pages(machine) == 0
    await agent.report(span(4, 2))
    assert vm.actual_bytes == RAM_BYTES - 2 * BLOCK_BYTES


async def test_a_guest_that_is_short_of_memory_keeps_what_it_got_back(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - 4 * BLOCK_BYTES)
    await agent.goal_of(4 * BLOCK_BYTES)
    await agent.report(span(4, 4))
    agent.settle()
    async with qmp_client(vm.paths.qmp) as client:
        agent.release(span(5, 3))
        agent.settle(pressure=True, counters=BlockCounters(pressure_releases=1), settled=False)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (event := await client.events.get())["event"] != "BALLAST_GUEST_PRESSURE":
                pass
    assert event["data"] == {
        "pressure": True,
        "releases": 1,
        "available-bytes": 0,
        "held-bytes": BLOCK_BYTES,
        "yielded-bytes": 3 * BLOCK_BYTES,
    }
    agent.settle(counters=BlockCounters(pressure_releases=1))
    await until(lambda: blocks_status(vm)["agent"]["pressure"] is False)
    assert await kernel_pages(machine) == 0
    assert vm.actual_bytes == RAM_BYTES - BLOCK_BYTES


async def test_an_agent_that_refuses_leaves_it_to_the_kernel(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    agent.settle(refusing="the guest uses huge pages itself")
    await until(lambda: blocks_status(vm)["obstacle"] == "the guest uses huge pages itself")
    vm.set_target(RAM_BYTES - 2 * BLOCK_BYTES)
    assert await kernel_pages(machine) == 2 * PAGES_PER_BLOCK
    with pytest.raises(OperatorError, match="takes no blocks: the guest uses huge pages"):
        await vm.blocks.sweep(None, 1.0)


async def test_a_vm_whose_memory_is_pinned_takes_no_blocks(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent
) -> None:
    vm.set_target(RAM_BYTES - 4 * BLOCK_BYTES)
    await agent.goal_of(4 * BLOCK_BYTES)
    await agent.report(span(4))
    vm.set_inhibited(True)
    await agent.goal_of(BLOCK_BYTES)
    assert (await agent.report(span(5))).refused == (span(5),)
    with pytest.raises(OperatorError, match="nothing is given back"):
        await vm.blocks.sweep(None, 1.0)
    vm.set_inhibited(False)
    await agent.goal_of(4 * BLOCK_BYTES)
    assert (await agent.report(span(5))).refused == ()


async def test_sweeps_and_compaction_are_the_agent_s(
    vm: VirtualMachine, agent: ScriptedAgent
) -> None:
    sweeping = asyncio.create_task(vm.blocks.sweep(1, PATIENCE_SECONDS))
    request_id, message = await agent.guest.hear()
    assert message == Sweep(1)
    await agent.report(span(4, 2), purpose=Purpose.SWEEP)
    assert vm.actual_bytes == RAM_BYTES
    assert blocks_status(vm)["sweep-bytes"] == 2 * BLOCK_BYTES
    agent.release(span(4, 2))
    done = SweepDone(0.5, "nothing more is free", 4, 2, 2 * BLOCK_BYTES, BLOCK_BYTES)
    agent.guest.say(done, request_id)
    assert (await sweeping)["freed-bytes"] == BLOCK_BYTES
    assert blocks_status(vm)["sweep-bytes"] == 0
    assert blocks_status(vm)["last-sweep"]["tried-blocks"] == 4
    compacting = asyncio.create_task(vm.blocks.compact(None, PATIENCE_SECONDS))
    request_id, message = await agent.guest.hear()
    assert message == Compact()
    agent.guest.say(CompactDone(0.5, 10, 30), request_id)
    assert (await compacting)["blocks-after"] == 30


async def test_nodes_contribute_their_shares(vm: VirtualMachine, agent: ScriptedAgent) -> None:
    vm.blocks.set_share(1, 2 * BLOCK_BYTES)
    vm.set_target(RAM_BYTES - 3 * BLOCK_BYTES)
    await agent.goal_of(3 * BLOCK_BYTES)
    await agent.report(span(4, 1, node=0))
    await agent.report(span(8, 2, node=1))
    rows: Any = {row["node"]: row for row in vm.blocks.nodes()}
    assert rows[0]["held-bytes"] == BLOCK_BYTES
    assert (rows[1]["held-bytes"], rows[1]["share-bytes"]) == (2 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert rows[1]["total-bytes"] is None
    agent.settle(nodes=(NodeBlocks(1, 64 * BLOCK_BYTES, 5, 4, 2 * BLOCK_BYTES, 0),))
    await until(lambda: vm.blocks.nodes()[1]["total-bytes"] == 64 * BLOCK_BYTES)
    vm.blocks.set_share(1, 0)
    assert vm.blocks.shares == {}
    with pytest.raises(OperatorError):
        vm.blocks.set_share(-1, BLOCK_BYTES)


async def test_without_an_agent_it_says_what_is_missing(
    vm: VirtualMachine, machine: Machine
) -> None:
    vm.set_target(RAM_BYTES - 2 * BLOCK_BYTES)
    assert await kernel_pages(machine) == 2 * PAGES_PER_BLOCK
    with pytest.raises(OperatorError, match="QEMU is not connected"):
        await vm.blocks.sweep(None, 1.0)


async def test_blocks_can_be_switched_off(tmp_path: Path) -> None:
    vm = VirtualMachine(VmConfig(name="vm", agent_blocks=False), paths=VmPaths("vm", tmp_path))
    await vm.start()
    assert blocks_status(vm)["obstacle"] == "switched off"
    with pytest.raises(OperatorError, match="without blocks") as caught:
        await vm.blocks.sweep(None, 1.0)
    assert "--no-agent-blocks" in caught.value.hint
    await vm.close()


# A successor


async def test_a_successor_presumes_until_the_agent_has_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = VirtualMachine(VmConfig(name="vm", target=RAM_BYTES), paths=VmPaths("vm", tmp_path))
    await first.start()
    async with machine_at(first.paths.vhost_user, blocks=(RamBlock(0, RAM_BYTES),)) as machine:
        await machine.start()
        async with scripted_agent(first.paths.agent) as agent:
            await agent.introduce()
            first.set_target(RAM_BYTES - 6 * BLOCK_BYTES - PAGE_SIZE)
            first.blocks.set_share(0, 2 * BLOCK_BYTES)
            await agent.goal_of(6 * BLOCK_BYTES)
            await agent.report(span(4, 5))
            state = first.blocks.state()
    await first.close()
    assert (state.relied_bytes, state.held_bytes) == (6 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    assert state.boot_id == "a"

    target = RAM_BYTES - 6 * BLOCK_BYTES - PAGE_SIZE
    second = VirtualMachine(VmConfig(name="vm"), paths=VmPaths("vm", tmp_path))
    second.blocks.restore(state)
    second.set_target(target)
    await second.start()
    async with machine_at(second.paths.vhost_user, blocks=(RamBlock(0, RAM_BYTES),)) as machine:
        await machine.start()
        second.device.blocks.presumed_bytes = state.held_bytes  # the start was a new driver's
        assert await kernel_pages(machine) == 1
        assert second.actual_bytes == RAM_BYTES - 5 * BLOCK_BYTES
        monkeypatch.setattr("ballast.daemon.blocks.GRACE_SECONDS", 0.2)
        async with scripted_agent(second.paths.agent) as agent:
            await agent.introduce(span(4, 5))
            assert agent.goal_bytes == 6 * BLOCK_BYTES
            assert second.device.blocks.known_hold_bytes == 0
            await agent.report(span(4, 3))
            await until(lambda: second.actual_bytes == RAM_BYTES - 3 * BLOCK_BYTES)
            await agent.report(span(7, 3))
            assert second.actual_bytes == RAM_BYTES - 6 * BLOCK_BYTES
            assert second.blocks.shares == {0: 2 * BLOCK_BYTES}
            assert await kernel_pages(machine) == 1
    await second.close()


async def test_a_successor_relies_on_the_agent_as_before_though_it_knows_the_machine_s_size(
    tmp_path: Path,
) -> None:
    vm = VirtualMachine(VmConfig(name="vm", memory=RAM_BYTES), paths=VmPaths("vm", tmp_path))
    wanted, held = 6 * BLOCK_BYTES, 2 * BLOCK_BYTES
    vm.blocks.restore(BlocksState(wanted_bytes=wanted, relied_bytes=wanted, held_bytes=held))
    vm.set_target(RAM_BYTES - wanted)
    await vm.start()
    assert vm.device.target_pages == 0
    state = vm.blocks.state()
    assert (state.relied_bytes, state.held_bytes) == (wanted, held)
    await vm.close()


async def test_a_successor_presumes_for_as_long_as_the_agent_goes_on_telling(
    vm: VirtualMachine, machine: Machine, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballast.daemon.blocks.GRACE_SECONDS", 600.0)
    presumed = RAM_BYTES - 5 * BLOCK_BYTES
    vm.device.blocks.presumed_bytes = 5 * BLOCK_BYTES
    for number in range(3):
        await agent.report(span(4 + number))
        vm.blocks._presume_nothing(number * BLOCK_BYTES)
        assert vm.actual_bytes == presumed
    vm.blocks._presume_nothing(3 * BLOCK_BYTES)
    assert vm.actual_bytes == RAM_BYTES - 3 * BLOCK_BYTES

"""One VM as the daemon wires it: what operators see of it in each state of its life."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.daemon.config import VmConfig
from ballast.daemon.paths import VmPaths
from ballast.daemon.vm import VirtualMachine
from ballast.qmp.results import STATUS
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import check_value
from ballast_protocol.virtio.balloon import BalloonFeature, BalloonQueue
from support.backend import until
from support.driver import PAGE_SIZE
from support.fds import none_left_open
from support.frontend import Frontend
from support.machine import FREE, RAM_BYTES, Machine, machine_at
from support.pages import MarkedPages
from support.qmp_peer import qmp_client

PATIENCE = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> VmPaths:
    return VmPaths("vm", tmp_path)


@pytest.fixture
async def vm(paths: VmPaths) -> AsyncIterator[VirtualMachine]:
    with none_left_open():
        vm = VirtualMachine(VmConfig(name="vm", free_page_hint=True), paths=paths)
        await vm.start()
        yield vm
        await vm.close()
        assert not paths.directory.exists()


@pytest.fixture
async def machine(vm: VirtualMachine) -> AsyncIterator[Machine]:
    async with machine_at(vm.paths.vhost_user) as machine:
        yield machine


def shown(vm: VirtualMachine) -> dict[str, object]:
    """Return the status as an operator's program gets it."""
    status = json.loads(json.dumps(vm.status()))
    assert isinstance(status, dict)
    return status


async def test_the_states_of_a_life(vm: VirtualMachine) -> None:
    assert shown(vm)["state"] == "waiting-for-qemu"
    assert (vm.ram_bytes, vm.actual_bytes, vm.vmm_pid) == (None, None, None)
    async with machine_at(vm.paths.vhost_user) as machine:
        assert shown(vm)["state"] == "waiting-for-driver"
        assert vm.vmm_pid == os.getpid()
        await machine.start()
        await machine.config()
        assert shown(vm)["state"] == "running"
        assert (vm.ram_bytes, vm.actual_bytes) == (RAM_BYTES, RAM_BYTES)
        await machine.pause()
        assert shown(vm)["state"] == "paused"
        assert vm.actual_bytes == RAM_BYTES
        await machine.resume()
        await machine.config()
        assert shown(vm)["state"] == "running"
    await until(lambda: shown(vm)["state"] == "waiting-for-qemu")
    assert shown(vm)["host"] == {"allocated-bytes": None, "rss-shmem-bytes": None}


async def test_the_status_is_what_it_is_declared_to_be(
    vm: VirtualMachine, machine: Machine
) -> None:
    for is_started in (False, True):
        if is_started:
            await machine.start()
            await machine.config()
        async with qmp_client(vm.paths.qmp) as client:
            answer = await client.execute("ballast-status")
        # What a key means stands in `qmp/results.py`, for those who read of it.
        check_value("ballast-status", STATUS, answer)


async def test_the_books_and_the_host_s_view(vm: VirtualMachine, machine: Machine) -> None:
    marked = MarkedPages(machine.ram, FREE)
    await machine.start()
    await machine.inflate(*FREE[:16])
    status = shown(vm)
    assert status["ledger"] == {
        "pages": 16,
        "bytes": 16 * PAGE_SIZE,
        "kernel-bytes": 16 * PAGE_SIZE,
        "agent-bytes": 0,
        "difference-bytes": 16 * PAGE_SIZE,
        "waiting-bytes": 0,
        "kept-bytes": 0,
    }
    assert not status["problem"]
    await machine.set_actual(16)
    assert vm.ledger_runs() == [(FREE[0], 16)]
    host = vm.host_memory()
    assert host.allocated_bytes == machine.ram.resident_bytes()
    assert marked.gone() == set(FREE[:16])
    assert host.rss_shmem_bytes is not None
    ledger = shown(vm)["ledger"]
    assert isinstance(ledger, dict)
    assert ledger["difference-bytes"] == 0


async def test_a_target_is_clamped_and_settled(vm: VirtualMachine, machine: Machine) -> None:
    vm.set_target(1 << 40)
    assert vm.target_bytes == 1 << 40
    await machine.start()
    await machine.config()
    assert vm.target_bytes == RAM_BYTES
    assert shown(vm)["settled"] is True
    vm.set_target(RAM_BYTES - 2 * PAGE_SIZE)
    await machine.frontend.config_changed()
    assert shown(vm)["settled"] is False
    await machine.inflate(*FREE[:2])
    await machine.set_actual(2)
    assert shown(vm)["settled"] is True
    assert vm.actual_bytes == vm.target_bytes


async def test_operators_hear_of_the_guest_s_size(vm: VirtualMachine, machine: Machine) -> None:
    await machine.start()
    async with qmp_client(vm.paths.qmp) as client:
        await machine.set_actual(3)
        async with asyncio.timeout(PATIENCE):
            event = await client.events.get()
    assert event["event"] == "BALLOON_CHANGE"
    assert event["data"] == {"actual": RAM_BYTES - 3 * PAGE_SIZE}


async def test_a_problem_of_the_rings_is_the_vm_s(vm: VirtualMachine, machine: Machine) -> None:
    await machine.start()
    machine.queues[BalloonQueue.DEFLATE].publish(1000)
    machine.frontend.kick(1)
    await until(lambda: "broke queue 1" in str(shown(vm)["problem"]))


async def test_a_refusal_of_the_kernel_is_a_problem(vm: VirtualMachine) -> None:
    vm.device.pages.last_failure = "Operation not supported"
    assert "refuses to free guest memory: Operation not" in str(shown(vm)["problem"])


# Statistics


async def test_fresh_statistics_on_demand(vm: VirtualMachine, machine: Machine) -> None:
    await machine.start()
    machine.offer_statistics(1)
    await until(lambda: vm.guest_stats.held_head is not None)
    asking = asyncio.create_task(vm.refresh_stats(PATIENCE))
    await machine.frontend.called(machine.index(BalloonQueue.STATS))
    machine.offer_statistics(2)
    await asking
    assert vm.guest_stats.values == {4: 2}


async def test_two_who_ask_at_once_get_the_same_answer(
    vm: VirtualMachine, machine: Machine
) -> None:
    await machine.start()
    machine.offer_statistics(1)
    await until(lambda: vm.guest_stats.held_head is not None)
    asking = asyncio.gather(vm.refresh_stats(PATIENCE), vm.refresh_stats(PATIENCE))
    await machine.frontend.called(machine.index(BalloonQueue.STATS))
    machine.offer_statistics(2)
    await asking


async def test_a_guest_that_does_not_answer(vm: VirtualMachine, machine: Machine) -> None:
    await machine.start()
    await machine.config()
    with pytest.raises(TimedOutError, match=r"within 0\.01 s") as caught:
        await vm.refresh_stats(0.01)
    assert caught.value.hint


async def test_a_guest_that_is_not_there(vm: VirtualMachine, machine: Machine) -> None:
    with pytest.raises(OperatorError, match="not running"):
        await vm.refresh_stats(PATIENCE)
    await machine.start()
    await machine.config()
    await machine.pause()
    with pytest.raises(OperatorError, match="not running"):
        await vm.refresh_stats(PATIENCE)


async def test_a_driver_without_statistics(vm: VirtualMachine) -> None:
    features = vm.device.offered & ~int(BalloonFeature.STATS_VQ)
    async with machine_at(vm.paths.vhost_user, features=features) as machine:
        await machine.start()
        await machine.config()
        with pytest.raises(OperatorError, match="does not offer statistics"):
            await vm.refresh_stats(PATIENCE)


async def test_polling_is_switched_on_and_off(vm: VirtualMachine, machine: Machine) -> None:
    await machine.start()
    machine.offer_statistics(1)
    await until(lambda: vm.guest_stats.held_head is not None)
    vm.stats_polling_interval = 1
    await machine.frontend.called(machine.index(BalloonQueue.STATS))
    machine.offer_statistics(2)
    await until(lambda: vm.guest_stats.values == {4: 2})
    vm.stats_polling_interval = 0
    assert vm.stats_polling_interval == 0


# Hints


async def test_hints_are_started_and_stopped(vm: VirtualMachine, machine: Machine) -> None:
    with pytest.raises(OperatorError):
        vm.start_hinting()
    await machine.start()
    await machine.config()
    vm.start_hinting()
    await machine.frontend.config_changed()
    assert shown(vm)["hinting"] == {"state": "requested", "hinted-bytes": 0}
    vm.stop_hinting()
    await machine.frontend.config_changed()
    assert (await machine.config()).free_page_hint_cmd_id == 1


# The agent and the sockets


async def test_without_an_agent_there_is_no_report(vm: VirtualMachine) -> None:
    with pytest.raises(OperatorError):
        await vm.request_agent_report(PATIENCE)


@pytest.fixture
def precious(request: pytest.FixtureRequest, paths: VmPaths) -> Path:
    """Return a file in the place of one of the sockets."""
    path = getattr(paths, request.param)
    assert isinstance(path, Path)
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.mark.parametrize("precious", ["vhost_user", "qmp", "agent"], indirect=True)
async def test_a_socket_that_cannot_be_had_leaves_nothing_behind(
    paths: VmPaths, precious: Path
) -> None:
    vm = VirtualMachine(VmConfig(name="vm"), paths=paths)
    with none_left_open():
        with pytest.raises(OperatorError):
            await vm.start()
        assert os.listdir(paths.directory) == [precious.name]
    os.unlink(precious)
    await vm.start()
    await vm.close()


async def test_sockets_of_a_crashed_daemon_give_way(paths: VmPaths) -> None:
    paths.directory.mkdir()
    for path in (paths.vhost_user, paths.qmp, paths.agent):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    vm = VirtualMachine(VmConfig(name="vm"), paths=paths)
    await vm.start()
    async with machine_at(paths.vhost_user) as machine:
        await machine.start()
    await vm.close()


async def test_another_socket_path(paths: VmPaths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.sock"
    vm = VirtualMachine(VmConfig(name="vm", socket_path=elsewhere), paths=paths)
    await vm.start()
    async with machine_at(elsewhere) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
    await vm.close()
    assert not elsewhere.exists()


@pytest.mark.parametrize("listening", [True, False])
async def test_an_inherited_socket(paths: VmPaths, listening: bool) -> None:
    with none_left_open():
        if listening:
            inherited = socket.socket(socket.AF_UNIX)
            address = paths.directory.parent / "inherited.sock"
            inherited.bind(str(address))
            inherited.listen()
        else:
            theirs, inherited = socket.socketpair()
        vm = VirtualMachine(VmConfig(name="vm", fd=inherited.detach()), paths=paths)
        await vm.start()
        frontend = await Frontend.connect(address) if listening else Frontend(theirs)
        async with frontend:
            await frontend.handshake()
            assert shown(vm)["state"] == "waiting-for-driver"
        await vm.close()


async def test_an_inherited_descriptor_that_is_no_socket(paths: VmPaths) -> None:
    with none_left_open():
        fd = os.eventfd(0)
        vm = VirtualMachine(VmConfig(name="vm", fd=fd), paths=paths)
        with pytest.raises(OperatorError, match="is not a socket") as caught:
            await vm.start()
        assert caught.value.hint
        os.close(fd)
    assert not paths.directory.exists()

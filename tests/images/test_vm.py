"""QEMUs that do not start, hang or die; nothing is booted here."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ballast_images import vm as vm_module
from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.vm import Vm
from ballast_protocol.errors import InternalError, OperatorError


def make_machine(qemu: Path, directory: Path) -> Machine:
    return Machine(qemu, GuestImage(Path("/k"), Path("/i"), "6.12"), directory)


def scripted(directory: Path, script: str) -> Machine:
    """A machine whose QEMU is a shell script."""
    program = directory / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return make_machine(program, directory)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_qemu_that_ends_at_once_is_quoted(socket_dir: Path) -> None:
    machine = scripted(socket_dir, "echo 'no such device' >&2; exit 3")
    with pytest.raises(OperatorError, match=r"(?s)status 3.*no such device"):
        async with Vm(machine):
            pass


async def test_a_qemu_that_never_answers_is_killed(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_module, "START_TIMEOUT_S", 0.3)
    monkeypatch.setattr(vm_module, "_END_TIMEOUT_S", 0.1)
    machine = scripted(
        socket_dir, "trap '' TERM; echo $$ >\"$0.pid\"; while :; do sleep 0.05; done"
    )
    with pytest.raises(OperatorError, match=r"not ready within 0\.3 s"):
        async with Vm(machine):
            pass
    assert not is_running(int((socket_dir / "qemu.pid").read_text()))


def test_before_the_start_there_is_nothing_to_talk_to(socket_dir: Path) -> None:
    vm = Vm(make_machine(Path("/qemu"), socket_dir))
    with pytest.raises(InternalError):
        vm.shell  # noqa: B018
    with pytest.raises(InternalError):
        vm.pid  # noqa: B018


@pytest.fixture
def bare(machine: Machine) -> Machine:
    """A real QEMU whose CPUs never start."""
    return replace(machine, memory_bytes=64 << 20, accelerator="tcg", arguments=("-S",))


@pytest.mark.qemu
async def test_it_is_managed_by_qmp_and_gone_afterwards(bare: Machine) -> None:
    async with Vm(bare) as vm:
        status = await vm.qmp.execute("query-status")
        assert isinstance(status, dict)
        assert status["status"] == "prelaunch"
        assert bare.qmp_socket.is_socket()
        assert is_running(vm.pid)
        assert vm.status is None
    assert vm.status == 0
    assert not is_running(vm.pid)


@pytest.mark.qemu
async def test_it_ends_also_when_the_block_fails(bare: Machine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Vm(bare) as vm:
            raise ZeroDivisionError
    assert vm.status == 0


@pytest.mark.qemu
async def test_waiting_for_the_guest_ends_with_qemu(bare: Machine) -> None:
    async with Vm(bare) as vm:
        waiting = asyncio.create_task(vm.wait_ready())
        await asyncio.sleep(0)
        os.kill(vm.pid, 9)
        with pytest.raises(OperatorError, match="QEMU ended with status -9"):
            await waiting
        assert await vm.wait_ended() == -9


@pytest.mark.qemu
async def test_what_qemu_refuses_is_quoted(bare: Machine) -> None:
    machine = replace(bare, arguments=("-device", "no-such-device"))
    with pytest.raises(OperatorError, match="'no-such-device' is not a valid device model name"):
        async with Vm(machine):
            pass


STARTER = """
import asyncio, pickle, sys
from ballast_images.vm import Vm
async def main():
    async with Vm(pickle.load(sys.stdin.buffer)) as vm:
        print(vm.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.qemu
def test_qemu_ends_with_a_process_that_is_killed(bare: Machine) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        pickle.dump(bare, starter.stdin)
        starter.stdin.close()
        pidfd = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
        # A process' descriptor becomes readable when the process has ended.
        ended, _, _ = select.select([pidfd], [], [], 60)
        os.close(pidfd)
        assert ended

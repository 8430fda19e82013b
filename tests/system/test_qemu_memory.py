"""Machines whose memory cannot be given back, machines that die, and memory that is plugged in."""

from __future__ import annotations

import base64
import os
import signal
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError

from ballast.daemon.config import Transport
from ballast.daemon.vm import VirtualMachine
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import BalloonQueue
from support.driver import PAGE_SIZE, Segment
from support.qtest import (
    SCRATCH_ADDRESS,
    SHARED_MEMORY,
    Qtest,
    SharedRam,
    machine_arguments,
    running_qtest,
)
from support.system import (
    MIB,
    allocated_bytes,
    balloon_device,
    bench,
    device_properties,
    eventually,
    served,
    settle,
    settled,
)
from support.virtio_pci import BalloonDriver, VirtioPci

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 256 * MIB
RINGS_BYTES = 4 * MIB
"""More than a driver's rings and buffers take."""

PIECE_BYTES = 64 << 10

HOT_PLUG_BASE = 1 << 32
"""Where a q35 with less than 2 GiB puts its first DIMM."""


@pytest.mark.parametrize(
    "memory",
    [SHARED_MEMORY.replace("share=on", "share=off"), ""],
    ids=["share=off", "no backend"],
)
async def test_memory_that_is_not_shared_is_the_first_thing_an_operator_reads(
    qemu: Path, transport: Transport, memory: str
) -> None:
    own = os.memfd_create("unseen by QEMU", os.MFD_CLOEXEC)
    os.ftruncate(own, RAM_BYTES)
    async with served(transport=transport) as balloon:
        arguments = (*machine_arguments(RAM_BYTES, memory), *balloon_device(balloon))
        async with running_qtest(qemu, *arguments) as qtest:
            with SharedRam(own) as ram:
                driver = BalloonDriver(await VirtioPci.find(qtest), ram)
                await driver.start()
                await show_rings(qtest, ram)
                await driver.ring(BalloonQueue.STATS)
            await eventually(lambda: balloon.status()["problem"] != "", "the problem is seen")
            problem = str(balloon.status()["problem"])
            assert "share=on" in problem
            assert "memory-backend=" in problem
            balloon.set_target(RAM_BYTES // 2)
            balloon.set_target(RAM_BYTES)
            await qtest.assert_alive()
        await eventually(lambda: balloon.vmm_pid is None, "QEMU's end is seen")
        assert balloon.status()["problem"] == ""


async def show_rings(qtest: Qtest, ram: SharedRam) -> None:
    """Write what a driver has prepared into the memory that QEMU keeps to itself."""
    for start in range(SCRATCH_ADDRESS, SCRATCH_ADDRESS + RINGS_BYTES, PIECE_BYTES):
        data = base64.b64encode(ram.read(start, PIECE_BYTES)).decode()
        await qtest.command(f"b64write {start:#x} {PIECE_BYTES:#x} {data}")


async def kill_in_mid_inflate(qemu: Path, balloon: VirtualMachine, target_bytes: int) -> None:
    async with bench(qemu, balloon) as machine:
        await machine.driver.start()
        async with machine.driver.obeying():
            balloon.set_target(target_bytes)
            await eventually(lambda: balloon.ledger_bytes > MIB, "a part is given")
            assert balloon.ledger_bytes < RAM_BYTES - target_bytes
            os.kill(machine.qtest.pid, signal.SIGKILL)
            await eventually(lambda: balloon.vmm_pid is None, "the end is seen")


async def test_a_killed_qemu_makes_room_for_the_next_one(qemu: Path, transport: Transport) -> None:
    target = RAM_BYTES // 2
    async with served(transport=transport) as balloon:
        for _ in range(3):
            with pytest.raises(OperatorError, match=r"QEMU (ended with -9|is gone)"):
                await kill_in_mid_inflate(qemu, balloon, target)
            assert balloon.status()["state"] == "waiting-for-qemu"
            assert balloon.ledger_runs() == []
            assert balloon.actual_bytes is None
        async with bench(qemu, balloon) as machine:
            await machine.driver.start()
            async with machine.driver.obeying():
                await settled(balloon)
            assert len(machine.driver.given) * PAGE_SIZE == target
            await machine.assert_exact()


async def test_a_second_qemu_on_the_same_socket_does_not_disturb_the_first(
    qemu: Path, transport: Transport
) -> None:
    async with served(transport=transport) as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        with pytest.raises(OperatorError, match="QEMU ended with 1"):
            async with bench(qemu, balloon):
                pass
        async with machine.driver.obeying():
            await settle(balloon, RAM_BYTES // 2)
        await machine.assert_exact()


async def test_a_second_device_on_the_same_socket_does_not_kill_a_running_machine(
    qemu: Path,
) -> None:
    port = ("-device", "pcie-root-port,id=rp1,bus=pcie.0,addr=6,chassis=2,slot=2")
    async with served(transport="vfio-user") as balloon, bench(qemu, balloon, *port) as machine:
        await machine.driver.start()
        second = {**device_properties(balloon, bus="rp1"), "id": "second"}
        with pytest.raises(ExecuteError, match="busy"):
            await machine.qtest.qmp.execute("device_add", second)
        async with machine.driver.obeying():
            await settle(balloon, RAM_BYTES // 2)
        await machine.assert_exact()


async def test_plugged_in_memory_counts_and_can_be_given_back(
    qemu: Path, transport: Transport
) -> None:
    slots = ("-m", "slots=2,maxmem=1G")
    async with served(transport=transport) as balloon, bench(qemu, balloon, *slots) as machine:
        await machine.driver.start()
        async with machine.driver.obeying():
            await settle(balloon, RAM_BYTES - 64 * MIB)
            backend = {"qom-type": "memory-backend-memfd", "id": "more", "size": 128 * MIB}
            await machine.qtest.qmp.execute("object-add", {**backend, "share": True})
            dimm = {"driver": "pc-dimm", "id": "dimm0", "memdev": "more"}
            await machine.qtest.qmp.execute("device_add", dimm)
            await eventually(lambda: balloon.ram_bytes == RAM_BYTES + 128 * MIB, "it counts")
            # The guest has more now, and the same size is wanted: it has to give more.
            await eventually(lambda: balloon.ledger_bytes == (64 + 128) * MIB, "more is given")
            await settle(balloon, RAM_BYTES)
        await machine.assert_exact()
        await machine.qtest.command(f"memset {HOT_PLUG_BASE:#x} {64 * MIB:#x} 0xa5")
        # The first report takes a page for itself.
        await machine.driver.report(Segment(HOT_PLUG_BASE + 48 * MIB, MIB))
        before = allocated_bytes(balloon)
        await machine.driver.report(Segment(HOT_PLUG_BASE, 32 * MIB))
        assert before - allocated_bytes(balloon) == 32 * MIB
        await machine.assert_exact()

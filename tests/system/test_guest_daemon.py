"""The daemon as its own process, driven by the command line, with a guest on it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_images.guest import GuestImage
from ballast_images.vm import Vm
from support.system import GIB, MIB, eventually, guest_at

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]

NAME = "web1"
ALL_ONES = 0xFFFFFFFF
COMMAND = (sys.executable, "-m", "ballast.cli.main")


@dataclass
class Daemon:
    """`ballast serve`, and the command line beside it.

    Attributes:
        root: The runtime directory of all VMs.
        process: The daemon.
    """

    root: Path
    process: asyncio.subprocess.Process

    @property
    def paths(self) -> VmPaths:
        return VmPaths(NAME, self.root)

    async def ballast(self, *arguments: str, status: int = 0) -> str:
        """Run a command and return what it printed, after a look at its exit status."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            env=os.environ | {"BALLAST_RUNTIME_DIR": str(self.root)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            printed, complaint = await process.communicate()
        assert process.returncode == status, complaint.decode()
        return printed.decode()

    async def json(self, *arguments: str) -> Any:
        """Run a command with `--json` and return what it printed."""
        return json.loads(await self.ballast(*arguments, "--json"))


@asynccontextmanager
async def daemon(*options: str) -> AsyncIterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "serve", NAME, "--no-agent-blocks", *options),
            env=os.environ | {"BALLAST_RUNTIME_DIR": name},
        )
        served = Daemon(Path(name), process)
        try:
            await eventually(served.paths.agent.is_socket, "the daemon listens")
            yield served
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(60):
                await process.wait()


async def ledger_bytes(client: qmp.BalloonClient) -> int:
    status: Any = await client.query("ballast-status")
    return int(status["ledger"]["bytes"])


async def test_the_command_line_moves_a_guest_and_sigterm_ends_the_daemon_in_mid_inflate(
    qemu: Path, image: GuestImage
) -> None:
    async with daemon() as served, guest_at(served.paths, qemu, image) as vm:
        result = await served.json("set", NAME, "1G", "--wait")
        assert result["actual-bytes"] == GIB
        status = await served.json("status", NAME)
        assert status["state"] == "running"
        assert status["settled"]
        assert status["ledger"]["bytes"] == GIB
        assert status["transport"]["connection"]["pid"] == vm.pid
        assert [each["name"] for each in await served.json("status")] == [NAME]
        answer = await served.json("stats", NAME)
        assert 0 < answer["stats"]["stat-total-memory"] < 1.1 * GIB
        assert "stat-free-memory" in await served.ballast("stats", NAME)
        assert NAME in await served.ballast("status")
        await served.ballast("set", NAME, "2G", "--wait")
        await served.ballast("status", "no-such-vm", status=1)
        assert vm.status is None, vm.error_text()

        async with qmp.connect(served.paths.qmp) as client:
            await client.execute("balloon", {"value": 256 * MIB})
            while (given := await ledger_bytes(client)) < 64 * MIB:
                pass
            assert given < GIB
        served.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await served.process.wait() == 0
        assert not served.paths.directory.exists()


READ_REGISTERS = """
import glob, json, mmap, os, struct
(device,) = {os.path.realpath(f"{name}/../..")
             for name in glob.glob("/sys/bus/virtio/drivers/virtio_balloon/virtio*/features")}
descriptor = os.open(f"{device}/resource0", os.O_RDWR | os.O_SYNC)
bar = memoryview(mmap.mmap(descriptor, 0x4000)).cast("I")
print(json.dumps({"feature": bar[1], "num_pages": bar[0x2000 // 4], "actual": bar[0x2004 // 4]}))
"""
"""Reads registers as the guest's kernel would: `device_feature`, for which QEMU asks the server,
and the config page, which is mapped."""


async def read_registers(vm: Vm) -> Any:
    result = await vm.shell.run(["python3", "-"], stdin=READ_REGISTERS)
    return result.json()


async def free_bytes(vm: Vm) -> int:
    return int((await vm.shell.run("memtool meminfo")).json()["MemFree"])


async def test_a_guest_whose_vfio_user_server_dies_keeps_its_memory_until_qemu_is_told_to_quit(
    qemu: Path, image: GuestImage
) -> None:
    """What QEMU 11.1 does then: it says that it has read the connection's end, and goes on.

    Each access to a register that is not mapped fails, and reads as all ones. So does `num_pages`
    where the config page is not mapped, and the balloon driver would give up all memory. QEMU never
    connects again; it aborts when memory is next mapped, which firmware does at each boot ("vfio:
    DMA mapping failed, unable to continue"). Nor can the guest power off where its kernel resets
    virtio devices before (stable kernels since 6.12.11x): it reads the status of a dead device for
    ever. QMP's `quit` is the way out. All this holds if QEMU was not waiting for an answer just
    then, for if it was it aborts at once.
    """
    async with (
        daemon("--transport", "vfio-user", "--no-keeper") as served,
        guest_at(
            *(served.paths, qemu, image),
            transport="vfio-user",
            memory_bytes=512 * MIB,
            # Lets the guest's root map registers that a driver has claimed.
            kernel_arguments=("iomem=relaxed",),
        ) as vm,
    ):
        await served.ballast("set", NAME, "384M", "--wait")
        balloon_pages = 128 * MIB // 4096
        before = await read_registers(vm)
        assert before["num_pages"] == before["actual"] == balloon_pages
        assert before["feature"] != ALL_ONES

        served.process.kill()
        await served.process.wait()
        await eventually(lambda: "EOF" in vm.error_text(), "QEMU sees the end")
        after = await read_registers(vm)
        assert after == {**before, "feature": ALL_ONES}
        free = await free_bytes(vm)
        await vm.shell.run(f"memtool fill --bytes {150 * MIB}", timeout_s=100)
        assert await free_bytes(vm) > free - 32 * MIB
        assert await read_registers(vm) == after
        await vm.qmp.execute("quit")
        async with asyncio.timeout(20):
            assert await vm.wait_ended() == 0

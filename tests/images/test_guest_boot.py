"""One boot of the real guest, driven through what it offers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.qemu import Qemu
from ballast_images.shell import GuestRestartedError
from ballast_images.vm import Vm
from ballast_protocol.errors import TimedOutError

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

MIB = 1 << 20
MEMORY_BYTES = 1024 * MIB
PAGE_SIZE = 4096


SAY_ON_CONSOLE = """
import os, termios
port = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
os.write(port, b"a word from the guest\\n")
termios.tcdrain(port)
"""

COUNT_HELD = """
import subprocess, sys, time, json
while True:
    runs = json.loads(subprocess.check_output(["memtool", "ballooned"]))["runs"]
    if sum(count for _, count in runs) == int(sys.argv[1]):
        break
    time.sleep(0.1)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(qemu: Qemu, guest_image: GuestImage, accelerator_name: str) -> AsyncIterator[Vm]:
    """A guest with QEMU's own balloon, booted once for all tests here."""
    with tempfile.TemporaryDirectory(prefix="ballast-") as directory:
        machine = Machine(
            qemu=qemu.command,
            image=guest_image,
            directory=Path(directory),
            memory_bytes=MEMORY_BYTES,
            accelerator=accelerator_name,
            kernel_arguments=("init_on_alloc=0",),
            arguments=("-device", "virtio-balloon-pci"),
        )
        async with Vm(machine) as vm:
            await vm.wait_ready()
            yield vm


async def test_the_stock_kernel_runs_with_its_balloon_driver(
    vm: Vm, guest_image: GuestImage
) -> None:
    assert (await vm.shell.run(["uname", "-r"])).stdout.strip() == guest_image.kernel_release
    assert (await vm.shell.run("readlink /sys/bus/virtio/drivers/virtio_balloon/module")).stdout
    mounts = (await vm.shell.run("cat /proc/mounts")).stdout
    for mounted in (" /proc proc ", " /sys sysfs ", " /dev/hugepages hugetlbfs ", " /tmp tmpfs "):
        assert mounted in mounts


async def test_python_has_what_an_agent_needs(vm: Vm) -> None:
    modules = [
        "asyncio",
        "ctypes",
        "json",
        "logging",
        "mmap",
        "resource",
        "select",
        "socket",
        "struct",
        "subprocess",
    ]
    result = await vm.shell.run(["python3", "-c", f"import {', '.join(modules)}; print('ok')"])
    assert result.stdout == "ok\n"


async def test_the_agent_is_there_whole(vm: Vm) -> None:
    listing = await vm.shell.run(["python3", "-m", "zipfile", "-l", "/usr/bin/ballast-agent.pyz"])
    assert "ballast_agent/__main__.py" in listing.stdout
    assert "ballast_protocol/errors.py" in listing.stdout


async def test_commands_run_beside_a_verifier(vm: Vm) -> None:
    options = ["--bytes", str(32 * MIB), "--seed", "3", "--stop-file", "/tmp/stop", "--remap"]
    verifying = asyncio.create_task(vm.shell.run(["memtool", "verify-loop", *options]))
    await vm.shell.run("until ps | grep -q '[v]erify-loop'; do sleep 0.1; done")
    filled = (await vm.shell.run(["memtool", "fill", "--bytes", str(16 * MIB)])).json()
    await vm.shell.run(["touch", "/tmp/stop"])
    assert filled["verified_bytes"] == 16 * MIB
    assert (await verifying).json()["wrong_pages"] == 0


async def test_memory_goes_to_the_guest_and_comes_back_through_the_balloon(vm: Vm) -> None:
    """The whole chain: memtool dirties, the balloon inflates, memtool sees what it holds."""
    await vm.shell.run(["memtool", "dirty", "--bytes", str(700 * MIB)])
    dirtied = resident_bytes(vm)
    assert dirtied > 700 * MIB
    assert (await vm.shell.run(["memtool", "ballooned"])).json() == {"runs": []}
    await set_balloon(vm, MEMORY_BYTES - 512 * MIB)
    runs = (await vm.shell.run(["memtool", "ballooned"])).json()["runs"]
    assert sum(count for _, count in runs) == 512 * MIB // PAGE_SIZE
    assert all(first + count < after for (first, count), (after, _) in pairwise(runs))
    assert resident_bytes(vm) <= MEMORY_BYTES - 512 * MIB
    await set_balloon(vm, MEMORY_BYTES)
    assert (await vm.shell.run(["memtool", "ballooned"])).json() == {"runs": []}


def resident_bytes(vm: Vm) -> int:
    """Return how much of the guest's RAM the host holds in memory."""
    for fd in Path(f"/proc/{vm.pid}/fd").iterdir():
        if fd.readlink().name.startswith("memfd:"):
            status = fd.stat()
            if status.st_size == MEMORY_BYTES:
                return status.st_blocks * 512
    raise AssertionError("QEMU holds no memfd of the guest's size")


async def set_balloon(vm: Vm, size: int) -> None:
    """Resize the guest and wait until the guest's kernel shows as many pages as it should hold."""
    await vm.qmp.execute("balloon", {"value": size})
    awaited = (MEMORY_BYTES - size) // PAGE_SIZE
    await vm.shell.run(["python3", "-c", COUNT_HELD, str(awaited)])


async def test_a_command_that_takes_too_long_is_killed_in_the_guest(vm: Vm) -> None:
    with pytest.raises(TimedOutError):
        await vm.shell.run(["sleep", "1234"], timeout_s=0.2)
    assert "sleep 1234" not in (await vm.shell.run(["ps"])).stdout


async def test_the_console_is_kept(vm: Vm) -> None:
    before = vm.console_text()
    await vm.shell.run(["python3", "-c", SAY_ON_CONSOLE])
    assert vm.console_text() == before + "a word from the guest\n"


async def test_after_a_reboot_the_shell_answers_again_and_then_the_guest_ends(vm: Vm) -> None:
    before = vm.shell.ready
    lost = asyncio.create_task(vm.shell.run(["sleep", "1000"], timeout_s=2000))
    await vm.shell.run("until ps | grep -q '[s]leep 1000'; do sleep 0.1; done")
    after = await vm.shell.reboot()
    assert before is not None
    assert after.boot_id != before.boot_id
    with pytest.raises(GuestRestartedError):
        await lost
    assert (await vm.shell.run(["memtool", "meminfo"])).json()["MemTotal"] > MEMORY_BYTES // 2
    assert await vm.shutdown() == 0
    assert vm.error_text() == ""

"""What tests of the whole have in common: a served balloon, a guest on it, and what both say."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from ballast.balloon.ranges import Run, merge
from ballast.daemon.config import Transport, VmConfig
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.daemon.recipes.libvirt import devices_as_json
from ballast.daemon.vm import VirtualMachine
from ballast.qmp.qom import BALLOON_ID
from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.vm import Vm
from ballast_protocol.errors import TimedOutError
from ballast_protocol.virtio.balloon import PFN_SHIFT
from support.qtest import Qtest, SharedRam, machine_arguments, running_qtest
from support.virtio_pci import LINUX_FEATURES, BalloonDriver, VirtioPci, setup_bridge

MIB = 1 << 20
GIB = 1 << 30

SETTLE_SECONDS = 60.0
POLL_SECONDS = 0.005

QUICK_ALLOCATION = "init_on_alloc=0"
"""Debian's kernels zero what they allocate; under emulation that is most of an inflate's time."""

ROOT_PORT = ("-device", "pcie-root-port,id=rp0,bus=pcie.0,addr=5,chassis=1,slot=1")
"""A place from which the balloon can be unplugged."""

ROOT_PORT_SLOT = 5

NATIVE_HOT_PLUG = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")
"""Makes a root port's slot registers do what otherwise ACPI methods do."""


async def eventually(
    condition: Callable[[], bool], what: str, timeout_seconds: float = SETTLE_SECONDS
) -> None:
    """Let everything go on until `condition` holds.

    Raises:
        TimedOutError: It does not in time.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                if condition():
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise TimedOutError(f"this did not happen: {what}") from None


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[VirtualMachine]:
    """Serve a balloon in this process, in a runtime directory of its own.

    Args:
        options: Of its `VmConfig`. Blocks are off unless they are asked for, so that everything
            goes through the guest's kernel.
    """
    options.setdefault("agent_blocks", False)
    with tempfile.TemporaryDirectory(prefix="bal-") as directory:
        config = VmConfig(name="vm", **options)
        balloon = VirtualMachine(config, paths=VmPaths(config.name, Path(directory)))
        await balloon.start()
        try:
            yield balloon
        finally:
            await balloon.close()


async def settle(balloon: VirtualMachine, target_bytes: int) -> None:
    """Set a target and wait until the guest says that it has that size."""
    balloon.set_target(target_bytes)
    await settled(balloon)


async def settled(balloon: VirtualMachine) -> None:
    """Wait until guest and books agree that the target is reached."""
    await eventually(
        lambda: is_settled(balloon), f"the target of {balloon.target_bytes} bytes is reached"
    )


def is_settled(balloon: VirtualMachine) -> bool:
    """Return whether guest and books agree that the target is reached."""
    # Asking for the size has it read from the page that the guest may have written it to.
    actual, ram = balloon.actual_bytes, balloon.ram_bytes
    # Not what the guest is asked for now: under a limit that is on the way to the target.
    wanted = ram if balloon.target_bytes is None else balloon.target_bytes
    if actual is None or ram is None or wanted is None:
        return False
    return actual == wanted and balloon.ledger_bytes == ram - wanted


@dataclass
class Targets:
    """The targets that were set.

    Attributes:
        last: The last one, in bytes.
        count: How many.
    """

    last: int = 0
    count: int = 0


@asynccontextmanager
async def changing_targets(
    balloon: VirtualMachine, highest_bytes: int, span_bytes: int, *, pause_seconds: float = 0.0
) -> AsyncIterator[Targets]:
    """Set other targets without end; when the context ends, check that the last one stands.

    Args:
        balloon: Whose.
        highest_bytes: The highest target.
        span_bytes: How far below it the others may be.
        pause_seconds: Between two; by default there is one at each turn of the event loop, which
            takes a whole processor.
    """
    choose, targets = random.Random(1), Targets()
    is_stopped = False

    async def change() -> None:
        while not is_stopped:
            pages = choose.randrange(span_bytes >> PFN_SHIFT)
            targets.last = highest_bytes - (pages << PFN_SHIFT)
            targets.count += 1
            balloon.set_target(targets.last)
            await asyncio.sleep(pause_seconds)

    task = asyncio.create_task(change())
    try:
        yield targets
    finally:
        is_stopped = True
        await task
    assert balloon.device.target_bytes == targets.last


async def log_dirty_pages(qmp: QMPClient) -> None:
    """Have QEMU log dirty pages for a second, which reaches the device as if by migration."""
    await qmp.execute("calc-dirty-rate", {"calc-time": 1, "mode": "dirty-bitmap"})
    async with asyncio.timeout(SETTLE_SECONDS):
        while True:
            answer: Any = await qmp.execute("query-dirty-rate")
            if answer["status"] == "measured":
                return
            await asyncio.sleep(10 * POLL_SECONDS)


@asynccontextmanager
async def deleting_balloon(qmp: QMPClient) -> AsyncIterator[None]:
    """Ask for the balloon to be unplugged; at the end, wait until it is gone."""
    with qmp.listener("DEVICE_DELETED") as events:
        await qmp.execute("device_del", {"id": BALLOON_ID})
        yield
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                data: Any = (await events.get())["data"]
                if data.get("device") == BALLOON_ID:
                    return


def transport_of(balloon: VirtualMachine) -> Transport:
    """Return what is spoken between QEMU and a balloon."""
    status: Any = balloon.status()["transport"]
    return "vfio-user" if status["transport"] == "vfio-user" else "vhost-user"


def messages(balloon: VirtualMachine) -> dict[str, int]:
    """Return how many vfio-user messages QEMU has sent on its present connection, by kind."""
    status: Any = balloon.status()["transport"]
    counts: dict[str, int] = status["connection"]["messages"]
    return counts


def counter(balloon: VirtualMachine, name: str) -> int:
    """Return one of the device's counters."""
    return balloon.device.metrics.as_dict()[name]


def allocated_bytes(balloon: VirtualMachine) -> int:
    """Return how much of the guest's memory the host holds."""
    allocated = balloon.host_memory().allocated_bytes
    assert allocated is not None
    return allocated


def rss_bytes(balloon: VirtualMachine) -> int:
    """Return how much shared memory QEMU has mapped and touched."""
    rss = balloon.host_memory().rss_shmem_bytes
    assert rss is not None
    return rss


@dataclass
class Guest:
    """A guest with a balloon.

    Attributes:
        balloon: What serves it.
        vm: QEMU and the guest.
    """

    balloon: VirtualMachine
    vm: Vm

    async def run(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a command in the guest's shell and return what it printed."""
        return (await self.vm.shell.run(command, timeout_s=timeout_s)).stdout

    async def memtool(self, arguments: str, *, timeout_s: float = 100.0) -> Any:
        """Run memtool in the guest and return what it found."""
        return json.loads(await self.run(f"memtool {arguments}", timeout_s=timeout_s))

    async def ballooned(self) -> list[Run]:
        """Return the pages that the guest's kernel has marked as its balloon's."""
        found = await self.memtool("ballooned")
        return [(first, count) for first, count in found["runs"]]

    async def vmstat(self, name: str) -> int:
        """Return one number of the guest's /proc/vmstat."""
        return int(await self.run(f"awk '$1 == \"{name}\" {{print $2}}' /proc/vmstat"))

    async def feature_bits(self) -> set[int]:
        """Return the features that the guest's driver has in force."""
        text = await self.run(f"cat {await self.driver()}/features")
        return {number for number, bit in enumerate(text.strip()) if bit == "1"}

    async def driver(self) -> str:
        """Return the sysfs directory of the device that the balloon driver is bound to."""
        return (
            await self.run("readlink -f /sys/bus/virtio/drivers/virtio_balloon/virtio*")
        ).strip()

    async def warnings(self) -> str:
        """Return what the guest's kernel has complained of: levels emerg to warning."""
        return await self.run("dmesg -r | grep '^<[0-4]>' || true")

    async def assert_well(self) -> None:
        """Check that QEMU runs, the guest answers, and the books agree page for page."""
        assert self.vm.status is None, self.vm.error_text()
        answer: Any = await self.vm.qmp.execute("query-status")
        assert answer["running"]
        assert await self.ballooned() == self.balloon.ledger_runs()
        assert self.balloon.status()["problem"] == ""
        assert self.vm.status is None, self.vm.error_text()


def balloon_device(balloon: VirtualMachine, *, bus: str = "") -> tuple[str, ...]:
    """Return QEMU's arguments for a balloon that is served."""
    transport = transport_of(balloon)
    return balloon_arguments(balloon.paths.device(transport), transport=transport, bus=bus)


def device_properties(balloon: VirtualMachine, *, bus: str) -> dict[str, Any]:
    """Return the arguments of `device_add` that plug a balloon in."""
    *_, text = devices_as_json(balloon_device(balloon, bus=bus))
    properties: dict[str, Any] = json.loads(text)
    return properties


@asynccontextmanager
async def booted_vm(qemu: Path, image: GuestImage, **machine: Any) -> AsyncIterator[Vm]:
    """Boot a guest and wait until it runs commands; `machine` is more of its `Machine`."""
    with tempfile.TemporaryDirectory(prefix="vm-") as directory:
        async with Vm(Machine(qemu=qemu, image=image, directory=Path(directory), **machine)) as vm:
            await vm.wait_ready()
            yield vm


@asynccontextmanager
async def guest_at(
    paths: VmPaths,
    qemu: Path,
    image: GuestImage,
    *,
    transport: Transport = "vhost-user",
    memory_bytes: int = 2 * GIB,
    memory_options: str = "",
    kernel_arguments: tuple[str, ...] = (),
) -> AsyncIterator[Vm]:
    """Boot a guest on a balloon that a process of its own serves."""
    async with booted_vm(
        qemu,
        image,
        memory_bytes=memory_bytes,
        memory_options=memory_options,
        kernel_arguments=(QUICK_ALLOCATION, *kernel_arguments),
        agent_socket=paths.agent,
        arguments=balloon_arguments(paths.device(transport), transport=transport),
    ) as vm:
        yield vm


@asynccontextmanager
async def booted(
    qemu: Path,
    image: GuestImage,
    balloon: VirtualMachine,
    *,
    memory_bytes: int = GIB,
    cpus: int = 2,
    kernel_arguments: tuple[str, ...] = (QUICK_ALLOCATION,),
    arguments: tuple[str, ...] | None = None,
    nodes: int = 1,
) -> AsyncIterator[Guest]:
    """Boot a guest on a served balloon and wait until it runs commands."""
    async with booted_vm(
        qemu,
        image,
        memory_bytes=memory_bytes,
        cpus=cpus,
        kernel_arguments=kernel_arguments,
        agent_socket=balloon.paths.agent,
        arguments=balloon_device(balloon) if arguments is None else arguments,
        nodes=nodes,
    ) as vm:
        yield Guest(balloon, vm)


@dataclass
class Bench:
    """A QEMU without a guest, and a driver that the test plays.

    Attributes:
        balloon: What serves it.
        qtest: QEMU.
        ram: The machine's RAM.
        driver: The driver; not yet started.
    """

    balloon: VirtualMachine
    qtest: Qtest
    ram: SharedRam
    driver: BalloonDriver

    async def new_driver(self, features: int = LINUX_FEATURES, *, bus: int = 0) -> BalloonDriver:
        """Find the device anew, as a guest does after a machine reset; the driver is to start."""
        if bus:
            await setup_bridge(self.qtest, ROOT_PORT_SLOT, bus)
        self.driver = BalloonDriver(await VirtioPci.find(self.qtest, bus), self.ram, features)
        return self.driver

    async def assert_exact(self) -> None:
        """Check that QEMU runs and that the books hold the driver's pages and no others."""
        await self.qtest.assert_alive()
        assert merge(self.driver.given) == self.balloon.ledger_runs()
        assert self.balloon.status()["problem"] == ""


@asynccontextmanager
async def bench(
    qemu: Path,
    balloon: VirtualMachine,
    *more: str,
    memory_bytes: int = 256 * MIB,
    features: int = LINUX_FEATURES,
    is_unpluggable: bool = False,
) -> AsyncIterator[Bench]:
    """Run a QEMU without a guest on a served balloon; the driver is there but not started.

    Args:
        qemu: The program.
        balloon: What serves the device.
        more: More of QEMU's arguments.
        memory_bytes: The machine's RAM.
        features: What the driver accepts.
        is_unpluggable: Put the device behind a root port, on bus 1.
    """
    port = (*ROOT_PORT, *NATIVE_HOT_PLUG) if is_unpluggable else ()
    device = balloon_device(balloon, bus="rp0" if is_unpluggable else "")
    arguments = (*machine_arguments(memory_bytes), *port, *device, *more)
    async with running_qtest(qemu, *arguments) as qtest:
        with qtest.ram() as ram:
            pci = await _first_device(qtest, is_unpluggable)
            yield Bench(balloon, qtest, ram, BalloonDriver(pci, ram, features))


async def _first_device(qtest: Qtest, is_unpluggable: bool) -> VirtioPci:
    if is_unpluggable:
        await setup_bridge(qtest, ROOT_PORT_SLOT, 1)
    return await VirtioPci.find(qtest, 1 if is_unpluggable else 0)

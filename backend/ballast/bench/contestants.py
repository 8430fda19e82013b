"""Guests that differ in nothing but their balloon, each measured from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ballast.bench.daemon import daemon
from ballast.daemon.config import Transport, VariantName
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.memory.residency import rss_shmem_bytes
from ballast.qmp import client as qmp
from ballast.qmp.qom import BALLOON_ID
from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.qemu import Qemu
from ballast_images.vm import Vm
from ballast_protocol.errors import OperatorError

_AGENT_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Balloon(Protocol):
    """How a balloon is set and looked at."""

    async def set(self, target_bytes: int) -> None:
        """Ask the guest for a size."""

    async def actual(self) -> int:
        """Return the size that the guest says it has."""


@dataclass
class Contestant:
    """One guest with one kind of balloon.

    Attributes:
        who: Its name in the results.
        guest: QEMU and what runs in it.
        balloon: Its balloon.
        backend_pid: The process that is the balloon; None if that is QEMU itself.
        cpu_threads: QEMU's threads that run the guest's CPUs.
    """

    who: str
    guest: Vm
    balloon: Balloon
    backend_pid: int | None
    cpu_threads: tuple[int, ...]

    def host_cpu_seconds(self) -> float:
        """Return the CPU time spent for the balloon, by QEMU and by the backend.

        The threads that run the guest's CPUs are left out: what they do is the guest's work. All
        others count, because over vfio-user one of them takes the backend's answers.
        """
        pid = self.guest.pid
        total = cpu_seconds(Path(f"/proc/{pid}/stat"))
        total -= sum(
            cpu_seconds(Path(f"/proc/{pid}/task/{thread}/stat")) for thread in self.cpu_threads
        )
        return total + (self.backend_cpu_seconds() or 0)

    def backend_cpu_seconds(self) -> float | None:
        """Return what of it the backend has spent; None if that is QEMU itself."""
        if self.backend_pid is None:
            return None
        return cpu_seconds(Path(f"/proc/{self.backend_pid}/stat"))

    def resident_bytes(self) -> int:
        """Return how much of the guest's memory the host holds (QEMU's RssShmem)."""
        return rss_shmem_bytes(self.guest.pid) or 0


def cpu_seconds(stat: Path) -> float:
    """Return user and system time from a `stat` file of procfs (proc(5))."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


class _BuiltIn:
    """QEMU's own balloon, through QEMU's QMP."""

    def __init__(self, guest: Vm) -> None:
        self._guest = guest

    async def set(self, target_bytes: int) -> None:
        await self._guest.qmp.execute("balloon", {"value": target_bytes})

    async def actual(self) -> int:
        answer = await self._guest.qmp.execute("query-balloon")
        return int(answer["actual"]) if isinstance(answer, dict) else 0


class _Ours:
    """Ballast's balloon, through its QMP."""

    def __init__(self, client: qmp.BalloonClient) -> None:
        self._client = client

    async def set(self, target_bytes: int) -> None:
        await self._client.execute("balloon", {"value": target_bytes})

    async def actual(self) -> int:
        answer = await self._client.query("query-balloon")
        actual = answer["actual"]
        return actual if isinstance(actual, int) else 0


@dataclass(frozen=True)
class Setup:
    """What all contestants have in common.

    Attributes:
        qemu: The QEMU.
        image: The guest.
        accelerator: What runs its instructions.
        memory_bytes: Its RAM.
        kernel_arguments: More for its kernel.
        scratch: Where sockets and logs go.
    """

    qemu: Qemu
    image: GuestImage
    accelerator: str
    memory_bytes: int
    kernel_arguments: tuple[str, ...]
    scratch: Path

    def machine(
        self, name: str, arguments: tuple[str, ...], agent_socket: Path | None = None
    ) -> Machine:
        """Return a guest with the balloon that `arguments` give it, and an agent if it has a way.

        The agent starts by itself where there is a port for it.
        """
        directory = self.scratch / name
        directory.mkdir(exist_ok=True)
        return Machine(
            self.qemu.command,
            self.image,
            directory,
            memory_bytes=self.memory_bytes,
            accelerator=self.accelerator,
            kernel_arguments=self.kernel_arguments,
            agent_socket=agent_socket,
            arguments=arguments,
        )


@dataclass(frozen=True)
class Ballast:
    """How Ballast is to be reached.

    Attributes:
        transport: What QEMU speaks to it.
        variant: With vfio-user, the kind of PCI function.
        has_agent: An agent in the guest takes its part, in whole blocks of 2 MiB.
        busy_poll_us: How long it looks for more work before it sleeps, in microseconds.
    """

    transport: Transport
    variant: VariantName = "msix-mapped"
    has_agent: bool = False
    busy_poll_us: int = 0


BUILT_IN = "qemu-builtin"
BUSY_POLL_US = 100
"""For contestants that look before they sleep."""

CONTESTANTS: dict[str, Ballast | None] = {
    "ballast/vhost-user": Ballast("vhost-user"),
    "ballast/vfio-user": Ballast("vfio-user"),
    "ballast/vfio-user-msix": Ballast("vfio-user", "msix"),
    "ballast/vfio-user-intx": Ballast("vfio-user", "intx"),
    "ballast/huge": Ballast("vhost-user", has_agent=True),
    "ballast/vhost-user-busy": Ballast("vhost-user", busy_poll_us=BUSY_POLL_US),
    "ballast/vfio-user-busy": Ballast("vfio-user", busy_poll_us=BUSY_POLL_US),
    BUILT_IN: None,
}
"""All that can be measured; None is QEMU's own balloon."""

DEFAULT_CONTESTANTS = ("ballast/vhost-user", "ballast/vfio-user", "ballast/huge", BUILT_IN)


@contextlib.asynccontextmanager
async def contestant(setup: Setup, who: str) -> AsyncIterator[Contestant]:
    """Run a guest with the balloon of this name in `CONTESTANTS`."""
    ballast = CONTESTANTS[who]
    running = _built_in(setup) if ballast is None else _ballast(setup, who, ballast)
    async with running as each:
        yield each


@contextlib.asynccontextmanager
async def _built_in(setup: Setup) -> AsyncIterator[Contestant]:
    """Run a guest with QEMU's own balloon."""
    machine = setup.machine("builtin", ("-device", f"virtio-balloon-pci,id={BALLOON_ID}"))
    async with Vm(machine) as guest:
        await guest.wait_ready()
        yield Contestant(BUILT_IN, guest, _BuiltIn(guest), None, await _cpu_threads(guest))
        await guest.shutdown()


@contextlib.asynccontextmanager
async def _ballast(setup: Setup, who: str, ballast: Ballast) -> AsyncIterator[Contestant]:
    """Run a guest with a Ballast balloon in a process of its own.

    Free-page reporting is off on both sides: it would give memory back before the balloon does.
    """
    name = who.rpartition("/")[2]
    paths = VmPaths(name, setup.scratch)
    options = [*("--transport", ballast.transport), *("--variant", ballast.variant)]
    options += ["--busy-poll-us", str(ballast.busy_poll_us)]
    async with daemon([paths], paths.device(ballast.transport), *options) as pid:
        socket = paths.device(ballast.transport)
        arguments = balloon_arguments(socket, transport=ballast.transport)
        agent_socket = paths.agent if ballast.has_agent else None
        machine = setup.machine(name, arguments, agent_socket)
        async with Vm(machine) as guest:
            await guest.wait_ready()
            async with qmp.connect(paths.qmp) as client:
                if ballast.has_agent:
                    await _agent_is_there(client)
                yield Contestant(who, guest, _Ours(client), pid, await _cpu_threads(guest))
            await guest.shutdown()


async def _agent_is_there(client: qmp.BalloonClient) -> None:
    """Wait until the agent in the guest takes blocks.

    Raises:
        OperatorError: It does not.
    """
    deadline = time.monotonic() + _AGENT_SECONDS
    while (obstacle := await _obstacle(client)) is not None:
        if time.monotonic() > deadline:
            raise OperatorError(f"the agent in the guest takes no blocks: {obstacle}")
        await asyncio.sleep(_LOOK_SECONDS)


async def _obstacle(client: qmp.BalloonClient) -> object:
    blocks: Any = (await client.query("ballast-status"))["blocks"]
    return blocks["obstacle"]


async def _cpu_threads(guest: Vm) -> tuple[int, ...]:
    """Return the threads of QEMU that run the guest's CPUs."""
    answer: Any = await guest.qmp.execute("query-cpus-fast")
    return tuple(int(cpu["thread-id"]) for cpu in answer)

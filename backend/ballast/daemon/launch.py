"""Runs one QEMU together with its balloon: the command lines, and the two lives as one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ballast.daemon.config import VmConfig
from ballast.daemon.migration import refuse_migration
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.daemon.serve import serving, stop_signal
from ballast_images.guest import GuestImage
from ballast_images.machine import agent_arguments, boot_arguments, machine_arguments
from ballast_protocol.errors import OperatorError

log = logging.getLogger(__name__)

QUIT_SECONDS = 10.0
"""How long QEMU may take to end on SIGTERM before it is killed."""


@dataclass(frozen=True)
class LaunchPlan:
    """One QEMU to run.

    Attributes:
        config: Its balloon.
        qemu: The program.
        memory_bytes: Its RAM.
        cpus: Its virtual CPUs.
        accelerator: `kvm` or `tcg`.
        image: The guest to boot if the operator brings none.
        arguments: What the operator adds.
    """

    config: VmConfig
    qemu: Path
    memory_bytes: int
    cpus: int
    accelerator: str
    image: GuestImage | None
    arguments: tuple[str, ...]

    def command(self, paths: VmPaths | None = None) -> list[str]:
        """Return QEMU's command line.

        Args:
            paths: The VM's files where it is not this user who runs it.
        """
        paths = paths or VmPaths(self.config.name)
        console = ("-nographic", "-nodefaults", "-serial", "mon:stdio")
        return [
            str(self.qemu),
            *("-name", self.config.name),
            *machine_arguments(self.memory_bytes, self.cpus, self.accelerator),
            *balloon_arguments(
                self.config.socket_path or paths.device(self.config.transport),
                transport=self.config.transport,
            ),
            *("-device", "virtio-serial-pci"),
            *agent_arguments(paths.agent),
            *monitor_arguments(paths.qemu_qmp),
            *monitor_arguments(paths.monitor),
            *((*console, *boot_arguments(self.image)) if self.image else ()),
            *self.arguments,
        ]

    def own_arguments(self) -> tuple[str, ...]:
        """Return what QEMU is told only when it is this process that runs it."""
        control = monitor_arguments(VmPaths(self.config.name).control)
        return (
            *("-run-with", "exit-with-parent=on"),
            *(control if self.config.transport == "vfio-user" else ()),
        )


def monitor_arguments(path: Path) -> tuple[str, str]:
    """Return QEMU's arguments for a QMP monitor at a path, which waits for no client."""
    return "-qmp", f"unix:{str(path).replace(',', ',,')},server=on,wait=off"


def shell_lines(command: list[str]) -> str:
    """Return a command line with each option on a line of its own, as a shell takes it."""
    lines = [shlex.quote(command[0])]
    for word in command[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


async def launch(plan: LaunchPlan) -> int:
    """Serve the balloon and run QEMU until either a signal comes or QEMU ends.

    Returns:
        QEMU's exit status; negative for a signal.

    Raises:
        OperatorError: The VM cannot be served, or QEMU cannot be run.
    """
    monitor = VmPaths(plan.config.name).monitor
    async with serving([plan.config.model_copy(update={"qemu_qmp": monitor})]):
        stop = asyncio.create_task(stop_signal())
        # A signal that comes while QEMU starts must find somebody who listens.
        await asyncio.sleep(0)
        try:
            return await run_qemu(plan, [*plan.command(), *plan.own_arguments()], stop)
        finally:
            stop.cancel()


async def run_qemu(plan: LaunchPlan, command: list[str], stop: asyncio.Task[signal.Signals]) -> int:
    """Run QEMU to its end, and end it when `stop` says so.

    Raises:
        OperatorError: It cannot be run.
    """
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        raise OperatorError(f"cannot run {plan.qemu}: {error.strerror}") from error
    ended = asyncio.create_task(process.wait())
    async with _guarding(plan):
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            log.warning("%s: ending QEMU", stop.result().name)
            await _end(process)
        return await ended


@contextlib.asynccontextmanager
async def _guarding(plan: LaunchPlan) -> AsyncIterator[None]:
    """Keep a VM whose balloon QEMU would lose from being migrated."""
    if plan.config.transport != "vfio-user":
        yield
        return
    name = plan.config.name
    guard = asyncio.create_task(refuse_migration(VmPaths(name).control, name))
    try:
        yield
    finally:
        guard.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await guard


async def _end(process: asyncio.subprocess.Process) -> None:
    """End QEMU before its balloon goes away, which it would not survive."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(QUIT_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()

"""A guest whose balloon is served by a daemon of its own, and how to reach both.

The daemon's worker is killed again and again, and operators' connections die with it: every
question is asked anew until it is answered, for a bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast.daemon.config import Transport
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.qmp import client as qmp
from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.qemu import Qemu
from ballast_images.vm import Vm
from ballast_protocol.errors import OperatorError, TimedOutError

GUEST_BYTES = 1 << 30
"""Small enough to lie below the hole for PCI, so that guest addresses are offsets in its memory."""

ANSWER_SECONDS = 60.0
"""How long a question may take, all attempts together."""

QUESTION_SECONDS = 10.0
PAUSE_SECONDS = 0.02
START_SECONDS = 30.0
NAME = "soak"


@dataclass(frozen=True)
class Setup:
    """What a soak runs on.

    Attributes:
        qemu: The QEMU.
        image: The guest.
        accelerator: What runs its instructions.
        transport: What QEMU speaks to the balloon.
        serve_arguments: More for `ballast serve`.
        kernel_arguments: More for the guest's kernel.
        memory_bytes: The guest's RAM.
    """

    qemu: Qemu
    image: GuestImage
    accelerator: str
    transport: Transport
    serve_arguments: tuple[str, ...] = ()
    kernel_arguments: tuple[str, ...] = ("init_on_alloc=0",)
    memory_bytes: int = GUEST_BYTES


class Lab:
    """A served guest.

    Attributes:
        vm: QEMU and the guest.
        paths: The balloon's sockets.
        memory_bytes: The guest's RAM.
    """

    def __init__(self, vm: Vm, paths: VmPaths, memory_bytes: int, log: Path) -> None:
        self.vm = vm
        self.paths = paths
        self.memory_bytes = memory_bytes
        self._log = log

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Execute one QMP command of the balloon's, again if its worker dies meanwhile.

        Raises:
            TimedOutError: There was no answer from any worker.
            OperatorError: QEMU has ended.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                async with qmp.connect(self.paths.qmp) as client:
                    return await client.execute(
                        command, arguments, timeout_seconds=QUESTION_SECONDS
                    )
            except qmp.CommandRefusedError:
                raise
            except OperatorError as error:
                self.check_alive()
                if time.monotonic() > deadline:
                    raise TimedOutError(f"{command} was not answered: {error}") from error
                await asyncio.sleep(PAUSE_SECONDS)

    async def status(self) -> dict[str, Any]:
        """Return what `ballast-status` has to say."""
        answer: dict[str, Any] = await self.ask("ballast-status")
        return answer

    async def worker_pid(self) -> int:
        """Return the process that serves the guest now."""
        status = await self.status()
        return int(status["keeper"]["worker-pid"])

    async def set_target(self, target_bytes: int) -> None:
        """Ask the guest for a size."""
        await self.ask("balloon", {"value": target_bytes})

    async def memtool(self, arguments: str, *, timeout_s: float = 300.0) -> Any:
        """Run memtool in the guest and return what it found, wrong pages included."""
        result = await self.vm.shell.run(f"memtool {arguments}", timeout_s=timeout_s, check=False)
        try:
            return result.json()
        except ValueError:
            raise OperatorError(
                f"memtool {arguments} ended with {result.status}: {result.stderr[-500:]}"
            ) from None

    def check_alive(self) -> None:
        """Make sure that QEMU runs.

        Raises:
            OperatorError: It has ended; with what it and the daemon have said.
        """
        if self.vm.status is not None:
            raise OperatorError(
                f"QEMU ended with status {self.vm.status}: {self.vm.error_text()[-2000:]}\n"
                f"The daemon's log ends with:\n{self.log_tail()}"
            )

    def log_tail(self, count: int = 30) -> str:
        """Return the last lines of the daemon's log."""
        return _tail(self._log, count)


def _tail(log: Path, count: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


@contextlib.asynccontextmanager
async def lab(setup: Setup) -> AsyncIterator[Lab]:
    """Serve a balloon with a daemon of its own and boot a guest on it.

    Raises:
        OperatorError: One of them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="ballast-soak-") as name:
        scratch = Path(name)
        paths, log = VmPaths(NAME, scratch / "run"), scratch / "daemon.log"
        async with _daemon(setup, paths, log):
            directory = scratch / "vm"
            directory.mkdir()
            machine = Machine(
                setup.qemu.command,
                setup.image,
                directory,
                memory_bytes=setup.memory_bytes,
                accelerator=setup.accelerator,
                kernel_arguments=setup.kernel_arguments,
                agent_socket=paths.agent,
                arguments=balloon_arguments(
                    paths.device(setup.transport), transport=setup.transport
                ),
            )
            async with Vm(machine) as vm:
                await vm.wait_ready()
                yield Lab(vm, paths, setup.memory_bytes, log)
                await vm.shutdown()


@contextlib.asynccontextmanager
async def _daemon(setup: Setup, paths: VmPaths, log: Path) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "ballast.cli.main", "serve", paths.name]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--transport", setup.transport),
            *setup.serve_arguments,
            env={**os.environ, "BALLAST_RUNTIME_DIR": str(paths.directory.parent)},
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (paths.qmp.is_socket() and paths.device(setup.transport).is_socket()):
                if process.returncode is not None:
                    raise OperatorError(f"`ballast serve` ended: {_tail(log, 20)}")
                await asyncio.sleep(PAUSE_SECONDS)
        yield
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the daemon in order, and by force if that takes too long."""
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await process.wait()
    if process.returncode is None:
        process.kill()
    await process.wait()

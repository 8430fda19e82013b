"""Puts a demo together: finds QEMU, builds the guest, serves the balloon, tells the story."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from ballast.daemon.config import VmConfig
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.daemon.serve import unless_stopped
from ballast.daemon.vm import VirtualMachine
from ballast.demo.record import Recording, recording
from ballast.demo.report import DemoResult
from ballast.demo.scenario import GUEST_BYTES, Story
from ballast_images.accelerator import accelerator
from ballast_images.guest import GuestImage, build_guest
from ballast_images.kernel_log import read_complaints
from ballast_images.machine import Machine
from ballast_images.progress import Reporter
from ballast_images.qemu import Qemu, find_qemu
from ballast_images.vm import Vm
from ballast_protocol.errors import OperatorError

AGENT_TIMEOUT_SECONDS = 60.0


async def run_demo(
    qemu_path: Path | None,
    reporter: Reporter,
    *,
    config: VmConfig,
    kernel_arguments: tuple[str, ...] = (),
    show: Callable[[str], None] = lambda line: None,
) -> tuple[DemoResult, Recording]:
    """Run the demo in a directory of its own, which is removed in the end.

    Args:
        qemu_path: The QEMU to use, if not any that is found.
        reporter: Shows what is under way.
        config: The balloon.
        kernel_arguments: More for the guest's kernel.
        show: Told in a line what will be run.

    Raises:
        OperatorError: This machine cannot run it, the guest failed, or a signal came.
    """
    qemu = await asyncio.to_thread(find_qemu, qemu_path, reporter=reporter)
    image = await asyncio.to_thread(build_guest, reporter=reporter)
    with reporter.step("Looking for an accelerator that works"):
        accel = await asyncio.to_thread(accelerator, qemu)
    show(f"QEMU {qemu.version} with {accel.name} ({accel.reason}), Linux {image.kernel_release}")
    with tempfile.TemporaryDirectory(prefix="ballast-demo-") as scratch:
        demo = _Demo(qemu, image, accel.name, Path(scratch), config, kernel_arguments, reporter)
        return await unless_stopped(demo.run())


class _Demo:
    """One run."""

    def __init__(
        self,
        qemu: Qemu,
        image: GuestImage,
        accel: str,
        scratch: Path,
        config: VmConfig,
        kernel_arguments: tuple[str, ...],
        reporter: Reporter,
    ) -> None:
        self._qemu, self._image, self._accel = qemu, image, accel
        self._scratch, self._reporter = scratch, reporter
        self._transport = config.transport
        self._vm = VirtualMachine(config, paths=VmPaths(config.name, scratch))
        self._machine = Machine(
            qemu.command,
            image,
            scratch,
            memory_bytes=GUEST_BYTES,
            accelerator=accel,
            kernel_arguments=kernel_arguments,
            agent_socket=self._vm.paths.agent,
            arguments=balloon_arguments(
                self._vm.paths.device(config.transport), transport=config.transport
            ),
        )

    async def run(self) -> tuple[DemoResult, Recording]:
        """Boot, tell the story, shut down."""
        await self._vm.start()
        try:
            async with Vm(self._machine) as guest:
                with self._reporter.step("Booting the guest"):
                    await guest.wait_ready()
                async with recording(self._vm) as record:
                    story = Story(self._vm, guest, record, self._reporter)
                    await story.run()
                result = await self._conclude(guest, story)
                with self._reporter.step("Shutting the guest down"):
                    status = await guest.shutdown()
            if status != 0:
                raise OperatorError(f"QEMU ended with status {status}: {guest.error_text()}")
            return result, record
        finally:
            await self._vm.close()

    async def _conclude(self, guest: Vm, story: Story) -> DemoResult:
        """Ask the guest what it has to say in the end."""
        report = await self._vm.agent.request_report(AGENT_TIMEOUT_SECONDS)
        agent = self._vm.agent.agent
        return DemoResult(
            transport=self._transport,
            qemu=self._qemu.version,
            kernel=self._image.kernel_release,
            accelerator=self._accel,
            steps=story.steps,
            verified_bytes=story.verified_bytes,
            kernel_warnings=await read_complaints(guest.shell),
            agent_version=agent.hello.agent_version if agent else None,
            free_bytes_by_order={
                str(order): free for order, free in enumerate(report.free_bytes_by_order())
            },
        )

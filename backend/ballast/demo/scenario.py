"""The demo's story: shrink, grow, and let free memory go back on its own; each step is measured.

A step is a success only if the host's own figures say so: what the kernel has allocated for the
guest's memory file, read before and after. Nothing is computed from the balloon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ballast.daemon.vm import VirtualMachine
from ballast.demo.record import Recording
from ballast.qmp.resizing import Follow, check_reached
from ballast_images.progress import Reporter
from ballast_images.vm import Vm

GUEST_BYTES = 2 << 30
TARGET_BYTES = 1 << 30
DIRTY_BYTES = 1536 << 20
"""How much the guest writes to and frees: most of its memory."""

REQUIRED_SHARE = 0.95
"""How much of an inflate the host must have got back for the step to count."""

REPORT_SHARE = 0.75
"""How much of the freed memory free-page reporting must bring back; the kernel keeps fragments."""

RESIZE_TIMEOUT_SECONDS = 120.0
REPORT_TIMEOUT_SECONDS = 120.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Step:
    """What one step did, as the host, the guest and QEMU say it.

    Attributes:
        name: `inflate`, `deflate` or `free-page-report`.
        ok: Whether the host's figures say that the step did what it is for.
        target_bytes: The guest's size that was asked for.
        actual_bytes: The size that the guest's driver says it has.
        seconds: From the QMP command until the guest was there (reporting: until it came to rest).
        host_resident_before_bytes: What the host held of the guest's memory.
        host_resident_after_bytes: The same afterwards.
        qemu_rss_shmem_before_bytes: QEMU's RssShmem.
        qemu_rss_shmem_after_bytes: The same afterwards.
        guest_total_bytes: MemTotal in the guest afterwards.
        guest_free_bytes: MemFree in the guest afterwards.
        ledger_bytes: What Ballast's books hold as given up afterwards.
        backend_cpu_seconds: CPU time of the backend during the step.
    """

    name: str
    ok: bool
    target_bytes: int
    actual_bytes: int
    seconds: float
    host_resident_before_bytes: int
    host_resident_after_bytes: int
    qemu_rss_shmem_before_bytes: int | None
    qemu_rss_shmem_after_bytes: int | None
    guest_total_bytes: int
    guest_free_bytes: int
    ledger_bytes: int
    backend_cpu_seconds: float

    @property
    def given_back_bytes(self) -> int:
        """How much less the host holds than before; negative if it holds more."""
        return self.host_resident_before_bytes - self.host_resident_after_bytes


class _Before:
    """What was measured before a step."""

    def __init__(self, vm: VirtualMachine) -> None:
        host = vm.host_memory()
        self.resident_bytes = host.allocated_bytes or 0
        self.rss_bytes = host.rss_shmem_bytes
        self.cpu = time.process_time()
        self.started = time.monotonic()


@dataclass
class Story:
    """Runs the steps on one VM.

    Attributes:
        vm: The balloon's side.
        guest: QEMU and what runs in it.
        record: Where samples go.
        reporter: Shows what is under way.
        steps: What has been done.
        verified_bytes: How much a guest program wrote and read back whole after the deflate.
    """

    vm: VirtualMachine
    guest: Vm
    record: Recording
    reporter: Reporter
    steps: list[Step] = field(default_factory=list)
    verified_bytes: int = 0

    async def run(self) -> None:
        """Go through all steps.

        Raises:
            OperatorError: The guest did not do what it was asked to, or lost data.
        """
        await self._use_memory("The guest writes to most of its memory and frees it")
        await self._resize("inflate", TARGET_BYTES)
        await self._resize("deflate", GUEST_BYTES)
        await self._use_memory("The guest fills its memory again and checks every byte")
        await self._report()

    async def _use_memory(self, what: str) -> None:
        with self.reporter.step(what):
            self.record.mark("dirty")
            result = await self.guest.shell.run(
                f"memtool fill --bytes {DIRTY_BYTES} --seed 1", timeout_s=300
            )
        # The tool itself fails if a single page reads back wrong.
        self.verified_bytes = int(result.json()["verified_bytes"])

    async def _resize(self, name: str, target_bytes: int) -> None:
        """Set a target over QMP, as an operator would, and wait for it."""
        self.record.mark(name)
        before = _Before(self.vm)
        with self.reporter.step(f"Target {target_bytes >> 20} MiB: {name}") as advance:
            start = self.vm.actual_bytes or target_bytes

            def show(progress: Mapping[str, object]) -> None:
                actual = progress["actual-bytes"]
                if isinstance(actual, int) and start != target_bytes:
                    advance((actual - start) / (target_bytes - start))

            follow = Follow(self.vm.paths.qmp, show, _LOOK_SECONDS)
            request = {"value": target_bytes, "timeout": RESIZE_TIMEOUT_SECONDS}
            check_reached(await follow.resize(request))
        wanted = max(start - target_bytes, 0) * REQUIRED_SHARE
        await self._finish(name, before, lambda given: given >= wanted)

    async def _report(self) -> None:
        """Wait until the guest's kernel has reported what it has free, and see what came back."""
        self.record.mark("free-page-report")
        before = _Before(self.vm)
        wanted = DIRTY_BYTES * REPORT_SHARE
        with self.reporter.step("The guest's kernel reports its free pages") as advance:
            deadline = before.started + REPORT_TIMEOUT_SECONDS
            lowest, lowest_at = before.resident_bytes, before.started
            while time.monotonic() < deadline:
                await asyncio.sleep(0.2)
                resident = self.vm.host_memory().allocated_bytes or 0
                if resident < lowest:
                    lowest, lowest_at = resident, time.monotonic()
                given = before.resident_bytes - resident
                advance(min(given / wanted, 1.0))
                if given >= wanted and time.monotonic() - lowest_at > 3.0:
                    break
        await self._finish("free-page-report", before, lambda given: given >= wanted)

    async def _finish(self, name: str, before: _Before, succeeds: Callable[[int], bool]) -> None:
        """Measure what a step has left behind, the time first."""
        seconds = time.monotonic() - before.started
        cpu = time.process_time() - before.cpu
        after = self.record.take(self.vm)
        guest = (await self.guest.shell.run("memtool meminfo")).json()
        resident = after.allocated_bytes or 0
        target = after.target_bytes or 0
        self.steps.append(
            Step(
                name=name,
                ok=after.actual_bytes == target and succeeds(before.resident_bytes - resident),
                target_bytes=target,
                actual_bytes=after.actual_bytes or 0,
                seconds=seconds,
                host_resident_before_bytes=before.resident_bytes,
                host_resident_after_bytes=resident,
                qemu_rss_shmem_before_bytes=before.rss_bytes,
                qemu_rss_shmem_after_bytes=after.rss_shmem_bytes,
                guest_total_bytes=guest["MemTotal"],
                guest_free_bytes=guest["MemFree"],
                ledger_bytes=self.vm.ledger_bytes,
                backend_cpu_seconds=cpu,
            )
        )

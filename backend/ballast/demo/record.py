"""What everybody says about a guest's memory, again and again while something happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ballast.daemon.vm import VirtualMachine

SAMPLE_SECONDS = 0.1
"""Time between two samples."""


@dataclass(frozen=True)
class Sample:
    """One moment.

    Attributes:
        seconds: Since the recording began.
        target_bytes: What the operator wants the guest to have.
        actual_bytes: What the guest's driver says it has; None before it runs.
        allocated_bytes: What the host holds of the guest's memory: the memfd's allocated blocks.
        rss_shmem_bytes: What QEMU's page tables hold of it: its RssShmem.
    """

    seconds: float
    target_bytes: int | None
    actual_bytes: int | None
    allocated_bytes: int | None
    rss_shmem_bytes: int | None


@dataclass
class Recording:
    """All samples of one run.

    Attributes:
        samples: In order.
        marks: Moments with a name: when the steps began.
    """

    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def take(self, vm: VirtualMachine) -> Sample:
        """Measure now."""
        host = vm.host_memory()
        sample = Sample(
            seconds=time.monotonic() - self._started,
            target_bytes=vm.target_bytes or vm.ram_bytes,
            actual_bytes=vm.actual_bytes,
            allocated_bytes=host.allocated_bytes,
            rss_shmem_bytes=host.rss_shmem_bytes,
        )
        self.samples.append(sample)
        return sample

    def mark(self, name: str) -> None:
        """Name this moment."""
        self.marks.append((time.monotonic() - self._started, name))


@contextlib.asynccontextmanager
async def recording(vm: VirtualMachine) -> AsyncIterator[Recording]:
    """Sample a VM while the context lasts."""
    record = Recording()

    async def sample() -> None:
        while True:
            record.take(vm)
            await asyncio.sleep(SAMPLE_SECONDS)

    task = asyncio.create_task(sample())
    try:
        yield record
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

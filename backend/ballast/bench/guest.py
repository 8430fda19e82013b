"""`ballast bench guest`: the same stock guest with Ballast and with QEMU's own balloon.

All guests run side by side and take turns, so that a machine whose speed drifts slows all. Time is
taken from the QMP command until the guest says that it has the size *and*, for an inflate, until
the host holds that much less.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballast.bench.contestants import Contestant, Setup, contestant
from ballast.bench.rows import Measurement
from ballast_images.guest import GuestImage
from ballast_images.progress import Reporter
from ballast_images.qemu import Qemu
from ballast_protocol.errors import TimedOutError

GUEST_BYTES = 2 << 30
SMALL_BYTES = 1 << 30
DIRTY_BYTES = 1664 << 20
"""What the guest writes to before an inflate of touched memory: nearly all that it has."""

FREED_SHARE = 0.95
LOOK_SECONDS = 0.005
MAX_LOOK_SECONDS = 0.1
FIRST_LOOK_SECONDS = 0.02
TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class GuestBench:
    """What to measure.

    Attributes:
        qemu: The QEMU.
        image: The guest.
        accelerator: What runs its instructions.
        rounds: How often each is measured.
        boots: Kernel command lines to compare; an empty one is the kernel's default.
        memories: `touched`, `untouched` or both.
        who: The balloons, by their names in `contestants.CONTESTANTS`.
        reporter: Shows what is under way.
    """

    qemu: Qemu
    image: GuestImage
    accelerator: str
    rounds: int
    boots: Sequence[str]
    memories: Sequence[str]
    who: Sequence[str]
    reporter: Reporter

    async def run(self) -> list[Measurement]:
        """Measure everything and return one measurement for each resize."""
        found: list[Measurement] = []
        for boot in self.boots:
            with tempfile.TemporaryDirectory(prefix="ballast-bench-") as scratch:
                setup = Setup(
                    self.qemu,
                    self.image,
                    self.accelerator,
                    GUEST_BYTES,
                    tuple(boot.split()),
                    Path(scratch),
                )
                found += await self._boot(setup, boot or "default")
        return found

    async def _boot(self, setup: Setup, boot: str) -> list[Measurement]:
        found: list[Measurement] = []
        async with contextlib.AsyncExitStack() as stack:
            with self.reporter.step(f"Booting {len(self.who)} guests ({boot})"):
                contestants = [
                    await stack.enter_async_context(contestant(setup, who)) for who in self.who
                ]
            # Untouched first: once a guest has used its memory, it stays touched.
            for memory in sorted(self.memories, reverse=True):
                with self.reporter.step(f"{boot}, {memory}: {self.rounds} rounds") as advance:
                    for number in range(self.rounds):
                        for each in contestants:
                            found += await _round(each, boot, memory)
                        advance((number + 1) / self.rounds)
        return found


async def _round(contestant: Contestant, boot: str, memory: str) -> list[Measurement]:
    """Inflate and deflate once."""
    if memory == "touched":
        await contestant.guest.shell.run(
            f"memtool dirty --bytes {DIRTY_BYTES}", timeout_s=TIMEOUT_SECONDS
        )
    found = []
    for work, target in (("inflate", SMALL_BYTES), ("deflate", GUEST_BYTES)):
        before = contestant.resident_bytes()
        backend, cpu = contestant.backend_cpu_seconds(), contestant.host_cpu_seconds()
        started = time.monotonic()
        await contestant.balloon.set(target)
        await _until(contestant, target)
        if work == "inflate" and memory == "touched":
            await _until_freed(contestant, before - int(SMALL_BYTES * FREED_SHARE))
        seconds, spent = time.monotonic() - started, contestant.backend_cpu_seconds()
        found.append(
            Measurement(
                work=work,
                who=contestant.who,
                boot=boot,
                memory=memory,
                seconds=seconds,
                host_cpu_seconds=contestant.host_cpu_seconds() - cpu,
                freed_bytes=before - contestant.resident_bytes(),
                backend_cpu_seconds=None if backend is None or spent is None else spent - backend,
            )
        )
    return found


async def _until(contestant: Contestant, target_bytes: int) -> None:
    """Wait until the guest says that it has the size.

    Each look costs the balloon that is measured, ours more than QEMU's. So it is looked at when it
    may have gone half of what is left of the way.
    """
    started = time.monotonic()
    begin = await contestant.balloon.actual()
    pause = FIRST_LOOK_SECONDS
    while (actual := await contestant.balloon.actual()) != target_bytes:
        now = time.monotonic()
        _check(started + TIMEOUT_SECONDS, f"{contestant.who} did not reach {target_bytes} bytes")
        if actual != begin:
            left = abs(target_bytes - actual) / abs(actual - begin) * (now - started)
            pause = min(max(left / 2, LOOK_SECONDS), MAX_LOOK_SECONDS)
        await asyncio.sleep(pause)


async def _until_freed(contestant: Contestant, resident_bytes: int) -> None:
    """Wait until the host holds no more than so much."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while contestant.resident_bytes() > resident_bytes:
        _check(deadline, f"{contestant.who} did not give {SMALL_BYTES} bytes back")
        await asyncio.sleep(LOOK_SECONDS)


def _check(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TimedOutError(f"{what} within {TIMEOUT_SECONDS:g} s")

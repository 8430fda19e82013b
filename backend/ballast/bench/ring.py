"""`bench ring`: patterns of page numbers through a real daemon, beside the raw system calls.

No guest and no QEMU: a scripted front-end plays the driver. The memory is populated before each
round, so that every page really has to be freed. Three contestants take turns:

* `floor`: the ranges of each array, merged, given to `fallocate` one after the other;
* `page-by-page`: what QEMU's own balloon does, a `fallocate` and a `madvise` for each page;
* `ballast/vhost-user`: the daemon, ring and all.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballast.balloon.ranges import Run, merge
from ballast.bench.daemon import daemon
from ballast.bench.frontend import FIRST_PFN, Frontend, Memory, pack_arrays
from ballast.bench.patterns import PATTERNS, RECORDED, Arrays
from ballast.bench.rows import Measurement
from ballast.daemon.paths import VmPaths
from ballast.memory.reclaim import punch_hole
from ballast_images.progress import Reporter

FLOOR, PAGE_BY_PAGE, OURS = "floor", "page-by-page", "ballast/vhost-user"
PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class RingBench:
    """What to measure.

    Attributes:
        socket: Where the daemon listens for QEMU.
        worker_pid: The process that serves it.
        patterns: Which, by their names in `patterns.PATTERNS`.
        size_bytes: How much is given up; the guest has twice as much.
        depth: How many buffers are on the way at once; 1 is how Linux does it.
        rounds: How often each is measured.
        reporter: Shows what is under way.
    """

    socket: Path
    worker_pid: int
    patterns: Sequence[str]
    size_bytes: int
    depth: int
    rounds: int
    reporter: Reporter

    def run(self) -> list[Measurement]:
        """Measure everything; blocks."""
        found: list[Measurement] = []
        memory = Memory(2 * self.size_bytes)
        with Frontend(self.socket, memory) as frontend:
            for pattern in self.patterns:
                arrays = self._arrays(pattern, memory)
                with self.reporter.step(f"{pattern}: {self.rounds} rounds") as advance:
                    for number in range(self.rounds):
                        found += self._round(frontend, pattern, arrays)
                        advance((number + 1) / self.rounds)
        memory.close()
        return found

    def _arrays(self, pattern: str, memory: Memory) -> Arrays:
        """Return a pattern; a recorded one is spread over all of the guest's memory."""
        pages = self.size_bytes // PAGE
        last = memory.last_pfn if pattern == RECORDED else FIRST_PFN + pages
        return PATTERNS[pattern](FIRST_PFN, last)

    def _round(self, frontend: Frontend, pattern: str, arrays: Arrays) -> list[Measurement]:
        memory = frontend.memory
        packed = pack_arrays(arrays)
        runs = [merge(pfns) for pfns in arrays]
        inflate, deflate = frontend.rings
        found = []
        for who, work, pid in (
            (FLOOR, lambda: give_runs(memory, runs), None),
            (PAGE_BY_PAGE, lambda: give_pages(memory, arrays), None),
            (OURS, lambda: inflate.play(packed, self.depth), self.worker_pid),
        ):
            memory.populate()
            found.append(_measure(memory, work, who, pattern, len(packed), pid))
        deflate.play(packed, self.depth)
        return found


def give_runs(memory: Memory, runs: Sequence[Sequence[Run]]) -> None:
    """Free merged ranges, array by array."""
    for array in runs:
        for first, count in array:
            punch_hole(memory.fd, first * PAGE, count * PAGE)


def give_pages(memory: Memory, arrays: Arrays) -> None:
    """Free page by page, as `ram_block_discard_range` of QEMU does for each PFN."""
    drop, base = _madvise(), ctypes.addressof(ctypes.c_char.from_buffer(memory.mapping))
    for pfns in arrays:
        for pfn in pfns:
            punch_hole(memory.fd, pfn * PAGE, PAGE)
            drop(base + pfn * PAGE, PAGE, mmap.MADV_DONTNEED)


def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


def _measure(
    memory: Memory,
    work: Callable[[], None],
    who: str,
    pattern: str,
    buffers: int,
    pid: int | None,
) -> Measurement:
    held = memory.allocated_bytes
    cpu, started = cpu_seconds(pid), time.monotonic()
    work()
    seconds = time.monotonic() - started
    return Measurement(
        work="inflate",
        who=who,
        pattern=pattern,
        boot="none",
        memory="touched",
        seconds=seconds,
        host_cpu_seconds=cpu_seconds(pid) - cpu,
        freed_bytes=held - memory.allocated_bytes,
        buffers=buffers,
    )


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time of a process to the nanosecond, or of this one."""
    if pid is None:
        return time.process_time()
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


async def bench_ring(
    patterns: Sequence[str], size_bytes: int, depth: int, rounds: int, reporter: Reporter
) -> list[Measurement]:
    """Measure patterns through a daemon that is started for it.

    Args:
        patterns: Which, by their names in `patterns.PATTERNS`.
        size_bytes: How much is given up.
        depth: How many buffers are on the way at once.
        rounds: How often each is measured.
        reporter: Shows what is under way.

    Raises:
        OperatorError: The daemon cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as scratch:
        paths = VmPaths("ring", Path(scratch))
        async with daemon([paths], paths.vhost_user) as pid:
            bench = RingBench(paths.vhost_user, pid, patterns, size_bytes, depth, rounds, reporter)
            return await asyncio.to_thread(bench.run)

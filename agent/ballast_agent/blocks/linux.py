"""The kernel that the agent runs on."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ballast_agent.blocks.files import (
    optional_number,
    read_number,
    read_text,
    refused,
    write_text,
)
from ballast_agent.blocks.hugetlbfs import PoolFiles
from ballast_agent.blocks.kernel import KPF_NOPAGE, MemorySpan, NodePool, PoolCounts
from ballast_agent.procfs import (
    ZoneInfo,
    ZoneKey,
    parse_buddyinfo,
    parse_iomem,
    parse_meminfo,
    parse_pressure,
    parse_zoneinfo,
)
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import PAGE_BYTES

_POOL = "hugepages-2048kB"
_GIGANTIC_POOL = "hugepages-1048576kB"
_FLAG_BYTES = 8

STEP_SECONDS = 0.1
"""How long a change of the pool's size may take, but for the page that is under way."""


class LinuxKernel:
    """See `ballast_agent.blocks.kernel.Kernel`."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        files: PoolFiles | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            proc: Where procfs is mounted.
            sys: Where sysfs is mounted.
            files: The claim and the reservation.
        """
        self._proc, self._sys = proc, sys
        self._files = files or PoolFiles(proc=proc)
        self._flags_fd: int | None = None

    def meminfo(self) -> dict[str, int]:
        """See `Kernel.meminfo`."""
        return parse_meminfo(read_text(self._proc / "meminfo"))

    def zones(self) -> dict[ZoneKey, ZoneInfo]:
        """See `Kernel.zones`."""
        return parse_zoneinfo(read_text(self._proc / "zoneinfo"))

    def buddyinfo(self) -> dict[ZoneKey, tuple[int, ...]]:
        """See `Kernel.buddyinfo`."""
        return parse_buddyinfo(read_text(self._proc / "buddyinfo"))

    def memory(self) -> list[MemorySpan]:
        """See `Kernel.memory`."""
        ram = parse_iomem(read_text(self._proc / "iomem"))
        return list(_spans(ram, self._memory_blocks()))

    def _memory_blocks(self) -> dict[tuple[int, int], int | None]:
        """Return the nodes of all memory blocks, by their first and end byte.

        Those that are offline are among them: that changes from moment to moment, and their pages
        show it. A kernel that cannot plug memory has no such blocks: all memory is of any node.
        """
        size_file = self._sys / "devices/system/memory/block_size_bytes"
        if not size_file.exists():
            return {(0, 1 << 64): None}
        size = int(read_text(size_file), 16)
        blocks: dict[tuple[int, int], int | None] = {}
        for path in self._sys.glob("devices/system/node/node*/memory*"):
            number = path.name[len("memory") :]
            if number.isdecimal():
                start = int(number) * size
                # A block that two nodes share is of whichever the zones say.
                node = None if (start, start + size) in blocks else _number(path.parent.name)
                blocks[start, start + size] = node
        return blocks

    def obstacle(self) -> str | None:
        """See `Kernel.obstacle`."""
        return next((text for applies, text in self._obstacles() if applies()), None)

    def _obstacles(self) -> Iterator[tuple[Callable[[], bool], str]]:
        pools, vm = self._sys / "kernel/mm/hugepages", self._proc / "sys/vm"
        yield (
            lambda: os.sysconf("SC_PAGE_SIZE") != PAGE_BYTES or not (pools / _POOL).exists(),
            "this kernel has no huge pages of 2 MiB",
        )
        yield (
            lambda: not (self._proc / "kpageflags").exists(),
            "this kernel has no /proc/kpageflags",
        )
        # Each of the following can move a page of the pool while a report of it is under way.
        yield (
            lambda: bool(list(self._sys.glob("bus/virtio/drivers/virtio_mem/virtio*"))),
            "this guest has a virtio-mem device",
        )
        yield (
            lambda: self.meminfo().get("CmaTotal", 0) > 0,
            "this guest has memory set aside for contiguous allocation (CMA)",
        )
        yield (
            lambda: optional_number(pools / _GIGANTIC_POOL / "nr_hugepages") > 0,
            "this guest uses huge pages of 1 GiB",
        )
        yield (
            lambda: optional_number(pools / _POOL / "nr_overcommit_hugepages") > 0,
            "this guest lets programs have huge pages at any time (vm.nr_overcommit_hugepages)",
        )
        yield (
            lambda: optional_number(vm / "hugetlb_optimize_vmemmap") > 0,
            "this guest needs memory to give huge pages back (vm.hugetlb_optimize_vmemmap)",
        )

    def pool(self) -> PoolCounts:
        """See `Kernel.pool`."""
        names = ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages")
        path = self._sys / "kernel/mm/hugepages" / _POOL
        if not path.exists():
            return PoolCounts(0, 0, 0, 0)
        return PoolCounts(*(read_number(path / name) for name in names))

    def node_pools(self) -> dict[int, NodePool]:
        """See `Kernel.node_pools`."""
        return {
            node: NodePool(read_number(path / "nr_hugepages"), read_number(path / "free_hugepages"))
            for node, path in self._node_paths().items()
        }

    def _node_paths(self) -> dict[int, Path]:
        paths = {
            _number(path.parents[1].name): path
            for path in self._sys.glob(f"devices/system/node/node*/hugepages/{_POOL}")
        }
        return paths or {0: self._sys / "kernel/mm/hugepages" / _POOL}

    def resize_pool(self, node: int, pages: int) -> None:
        """See `Kernel.resize_pool`."""
        path = self._node_paths().get(node)
        if path is None:
            raise OperatorError(f"NUMA node {node} has no huge pages")
        with _interrupted_after(STEP_SECONDS):
            write_text(path / "nr_hugepages", str(pages))

    def page_flags(self, pfns: Sequence[int]) -> list[int]:
        """See `Kernel.page_flags`."""
        path = self._proc / "kpageflags"
        try:
            if self._flags_fd is None:
                self._flags_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            words = [os.pread(self._flags_fd, _FLAG_BYTES, pfn * _FLAG_BYTES) for pfn in pfns]
        except OSError as error:
            raise refused(path, "read", error) from error
        return [int.from_bytes(w, "little") if len(w) == _FLAG_BYTES else KPF_NOPAGE for w in words]

    def is_claimed(self) -> bool:
        """See `Kernel.is_claimed`."""
        return self._files.is_claimed()

    def claim(self) -> None:
        """See `Kernel.claim`."""
        self._files.claim()

    def unclaim(self) -> None:
        """See `Kernel.unclaim`."""
        self._files.unclaim()

    def reserve(self, pages: int) -> None:
        """See `Kernel.reserve`."""
        self._files.reserve(pages)

    def compact(self, node: int | None) -> None:
        """See `Kernel.compact`."""
        if node is None:
            write_text(self._proc / "sys/vm/compact_memory", "1")
        else:
            write_text(self._sys / f"devices/system/node/node{node}/compact", "1")

    def stalled_seconds(self) -> float:
        """See `Kernel.stalled_seconds`."""
        pressure = parse_pressure(read_text(self._proc / "pressure/memory"))
        return pressure.some.total_microseconds / 1e6

    def reclaim(self, size_bytes: int) -> None:
        """See `Kernel.reclaim`."""
        path = self._sys / "fs/cgroup/memory.reclaim"
        # Nothing is to be swapped out; without swap, older kernels need not be told.
        rule = " swappiness=0" if self.meminfo().get("SwapTotal", 0) else ""
        try:
            write_text(path, f"{size_bytes}{rule}")
        except OperatorError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EAGAIN:
                raise
            # There was less to reclaim.


def _number(name: str) -> int:
    return int("".join(filter(str.isdecimal, name)))


def _spans(
    ram: Sequence[tuple[int, int]], blocks: dict[tuple[int, int], int | None]
) -> Iterator[MemorySpan]:
    for start, end in sorted(ram):
        for (first, last), node in sorted(blocks.items(), key=lambda item: item[0]):
            low, high = max(start, first), min(end, last)
            # Pages that are not wholly RAM are none.
            if low < high:
                yield MemorySpan(-(-low // PAGE_BYTES), high // PAGE_BYTES, node)


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Send this process a harmless signal after a time: it ends a change of the pool's size early.

    The kernel looks for signals after every page that it adds, and what it has added stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

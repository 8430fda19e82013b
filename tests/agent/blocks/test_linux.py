"""The kernel's files, in a directory that looks like `/proc` and `/sys`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from ballast_agent.blocks.kernel import (
    KPF_BUDDY,
    KPF_NOPAGE,
    POOL_PAGE,
    MemorySpan,
    NodePool,
    PoolCounts,
    is_pool_page,
)
from ballast_agent.blocks.linux import LinuxKernel, _interrupted_after
from ballast_protocol.errors import OperatorError

POOL = "sys/kernel/mm/hugepages/hugepages-2048kB"
IOMEM = """\
00001000-0009fbff : System RAM
00100000-7ffdbfff : System RAM
  01000000-022fffff : Kernel code
7ffdc000-7fffffff : Reserved
fe000000-ffffffff : PCI Bus 0000:00
100000000-17fffffff : System RAM
"""


class Machine:
    """Writes the files that a machine would have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = LinuxKernel(root / "proc", root / "sys")
        self.write("proc/meminfo", "MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
        self.write("proc/iomem", IOMEM)
        self.write("proc/kpageflags", "")
        self.write("proc/self/mountinfo", "")
        for name in ("nr", "free", "resv", "surplus", "nr_overcommit"):
            self.write(f"{POOL}/{name}_hugepages", "0\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def memory_block(self, node: int, number: int, state: str = "online") -> None:
        self.write("sys/devices/system/memory/block_size_bytes", "40000000\n")
        self.write(f"sys/devices/system/node/node{node}/memory{number}/state", state + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_amounts(machine: Machine) -> None:
    assert machine.kernel.meminfo() == {"MemTotal": 1 << 20, "MemAvailable": 1 << 19}
    (machine.root / "proc/meminfo").unlink()
    with pytest.raises(OperatorError, match="meminfo cannot be read"):
        machine.kernel.meminfo()


def test_memory_of_a_kernel_that_cannot_plug_any(machine: Machine) -> None:
    assert machine.kernel.memory() == [
        MemorySpan(1, 0x9F, None),
        MemorySpan(0x100, 0x7FFDC, None),
        MemorySpan(0x100000, 0x180000, None),
    ]


def test_memory_is_on_the_nodes_that_its_blocks_are_on(machine: Machine) -> None:
    machine.memory_block(0, 0)
    machine.memory_block(1, 1)
    machine.memory_block(1, 4)
    machine.memory_block(1, 5, "offline")
    assert machine.kernel.memory() == [
        MemorySpan(1, 0x9F, 0),
        MemorySpan(0x100, 0x40000, 0),
        MemorySpan(0x40000, 0x7FFDC, 1),
        MemorySpan(0x100000, 0x140000, 1),
        MemorySpan(0x140000, 0x180000, 1),
    ]


def test_a_block_that_two_nodes_share_is_of_neither(machine: Machine) -> None:
    machine.memory_block(0, 0)
    machine.memory_block(1, 0)
    assert machine.kernel.memory()[1] == MemorySpan(0x100, 0x40000, None)


def test_hidden_addresses_are_an_error(machine: Machine) -> None:
    machine.write("proc/iomem", "00000000-00000000 : System RAM\n")
    with pytest.raises(OperatorError) as caught:
        machine.kernel.memory()
    assert caught.value.hint == "run as root"


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("sys/bus/virtio/drivers/virtio_mem/virtio3/id", "", "virtio-mem"),
        ("proc/meminfo", "CmaTotal: 65536 kB\n", "CMA"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1", "1 GiB"),
        (f"{POOL}/nr_overcommit_hugepages", "5", "nr_overcommit"),
        ("proc/sys/vm/hugetlb_optimize_vmemmap", "1", "hugetlb_optimize_vmemmap"),
    ],
)
def test_what_speaks_against_blocks(machine: Machine, path: str, text: str, reason: str) -> None:
    assert machine.kernel.obstacle() is None
    machine.write(path, text)
    assert reason in str(machine.kernel.obstacle())


@pytest.mark.parametrize("path", ["proc/kpageflags", POOL])
def test_kernels_without_what_is_needed(machine: Machine, path: str) -> None:
    (machine.root / path).rename(machine.root / "gone")
    obstacle = machine.kernel.obstacle()
    assert obstacle is not None
    assert "this kernel has no" in obstacle


def test_pools(machine: Machine) -> None:
    for number, name in enumerate(("nr", "free", "resv", "surplus")):
        machine.write(f"{POOL}/{name}_hugepages", f"{number}\n")
    assert machine.kernel.pool() == PoolCounts(0, 1, 2, 3)
    assert machine.kernel.node_pools() == {0: NodePool(0, 1)}, "a kernel without nodes"
    for node in (0, 2):
        path = f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
        machine.write(f"{path}/nr_hugepages", f"{node + 5}")
        machine.write(f"{path}/free_hugepages", f"{node + 3}")
    assert machine.kernel.node_pools() == {0: NodePool(5, 3), 2: NodePool(7, 5)}
    machine.kernel.resize_pool(2, 99)
    assert machine.kernel.node_pools()[2].total == 99
    with pytest.raises(OperatorError, match="node 1"):
        machine.kernel.resize_pool(1, 99)


def test_page_flags(machine: Machine) -> None:
    words = [0, POOL_PAGE | 1 << 40, KPF_BUDDY]
    data = b"".join(word.to_bytes(8, "little") for word in words)
    (machine.root / "proc/kpageflags").write_bytes(data)
    flags = machine.kernel.page_flags([2, 1, 0, 3, 1 << 40])
    assert flags == [KPF_BUDDY, words[1], 0, KPF_NOPAGE, KPF_NOPAGE]
    assert [is_pool_page(flag) for flag in flags] == [False, True, False, False, False]
    assert not is_pool_page(POOL_PAGE | 1 << 19), "a poisoned page is none"


def test_compaction(machine: Machine) -> None:
    machine.write("proc/sys/vm/compact_memory", "")
    machine.write("sys/devices/system/node/node3/compact", "")
    machine.kernel.compact(None)
    machine.kernel.compact(3)
    assert (machine.root / "proc/sys/vm/compact_memory").read_text() == "1"
    assert (machine.root / "sys/devices/system/node/node3/compact").read_text() == "1"


def test_reclaim_swaps_nothing_out(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/memory.reclaim", "")
    machine.kernel.reclaim(12345678)
    assert (machine.root / "sys/fs/cgroup/memory.reclaim").read_text() == "12345678"
    machine.write("proc/meminfo", "SwapTotal: 100 kB\n")
    machine.kernel.reclaim(12345678)
    text = (machine.root / "sys/fs/cgroup/memory.reclaim").read_text()
    assert text == "12345678 swappiness=0"


def test_stalls(machine: Machine) -> None:
    lines = "{} avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
    machine.write("proc/pressure/memory", lines.format("some", 2500000) + lines.format("full", 1))
    assert machine.kernel.stalled_seconds() == 2.5


def test_nobody_claims_where_nothing_is_mounted(machine: Machine) -> None:
    assert not machine.kernel.is_claimed()
    machine.kernel.unclaim()


def test_a_change_of_the_pool_is_interrupted() -> None:
    """The signal arrives, and does nothing but end a system call that looks for signals."""
    arrived = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: arrived.set())
    try:
        with _interrupted_after(0.01):
            while signal.getitimer(signal.ITIMER_REAL)[0] != 0.0:
                pass
        assert not arrived.is_set()
        signal.raise_signal(signal.SIGALRM)
        assert arrived.is_set(), "the handler of before is back"
    finally:
        signal.signal(signal.SIGALRM, before)

"""`bench scale`: many VMs in one daemon, all but one of them inflating without pause.

Scripted front-ends take the place of guests. The one that is idle is asked for its size, and given
another one, again and again: what its operator waits for is what the others cost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballast.bench.busy import GUEST_BYTES
from ballast.bench.daemon import daemon
from ballast.bench.frontend import Frontend, Memory
from ballast.bench.ring import cpu_seconds
from ballast.bench.rows import Measurement
from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_images.progress import Reporter
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import PFN_SHIFT

WHO = "ballast/vhost-user"
SECONDS = 5.0
"""How long a number of VMs is kept busy in each round: half of it for each question."""

QUESTION_PAUSE_SECONDS = 0.005
START_SECONDS = 60.0


@dataclass(frozen=True)
class Idle:
    """What a VM that does nothing costs.

    Attributes:
        vms: How many there were.
        bytes_per_vm: Private memory of the daemon for each, beyond that of the first.
    """

    vms: int
    bytes_per_vm: int


async def bench_scale(
    counts: Sequence[int], rounds: int, reporter: Reporter, *, seconds: float = SECONDS
) -> tuple[list[Measurement], list[Idle]]:
    """Measure daemons with different numbers of VMs.

    Args:
        counts: How many VMs each.
        rounds: How often each is measured.
        reporter: Shows what is under way.
        seconds: How long each number is kept busy, in each round.

    Raises:
        OperatorError: A daemon or the busy guests did not start.
    """
    found: list[Measurement] = []
    idle: list[Idle] = []
    alone = await _idle_bytes(1)
    for count in counts:
        with reporter.step(f"{count} VMs: {rounds} rounds") as advance:
            if count > 1:
                extra = await _idle_bytes(count) - alone
                idle.append(Idle(count, extra // (count - 1)))
            for number in range(rounds):
                found += await _round(count, seconds)
                advance((number + 1) / rounds)
    return found, idle


async def _idle_bytes(count: int) -> int:
    """Return the private memory of a daemon for so many VMs without guests."""
    async with _served(count) as (_, pid):
        return _private_bytes(pid)


def _private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    raise OperatorError(f"process {pid} does not tell how much memory it uses")


@contextlib.asynccontextmanager
async def _served(count: int) -> AsyncIterator[tuple[list[VmPaths], int]]:
    with tempfile.TemporaryDirectory(prefix="ballast-bench-") as scratch:
        vms = [VmPaths(f"vm{number}", Path(scratch)) for number in range(count)]
        async with daemon(vms, vms[-1].vhost_user) as pid:
            yield vms, pid


async def _round(count: int, seconds: float) -> list[Measurement]:
    async with _served(count) as (vms, pid), _busy(vms[:-1]) as busy:
        memory = Memory(GUEST_BYTES)
        frontend = await asyncio.to_thread(Frontend, vms[-1].vhost_user, memory)
        try:
            async with qmp.connect(vms[-1].qmp) as client:
                probe = _Probe(client, frontend)
                cpu = cpu_seconds(pid)
                await busy.start()
                queries = await _latencies(probe.query, seconds / 2)
                changes = await _latencies(probe.change, seconds / 2)
                moved, busy_seconds = await busy.stop()
                cpu = cpu_seconds(pid) - cpu
        finally:
            frontend.close()
            memory.close()
    return [
        _measurement("inflate", count, busy_seconds, cpu, moved, None),
        _measurement("query-balloon", count, busy_seconds, cpu, moved, _p99(queries)),
        _measurement("config-change", count, busy_seconds, cpu, moved, _p99(changes)),
    ]


def _measurement(
    work: str, count: int, seconds: float, cpu: float, moved: int, latency: float | None
) -> Measurement:
    return Measurement(
        work=work,
        who=WHO,
        boot="none",
        memory="touched",
        seconds=seconds,
        host_cpu_seconds=cpu,
        freed_bytes=moved,
        vms=count,
        latency_p99_seconds=latency,
    )


class _Probe:
    """The VM that is idle, seen by its operator and by its guest."""

    def __init__(self, client: qmp.BalloonClient, frontend: Frontend) -> None:
        self._client = client
        self._frontend = frontend
        self._pages = 0

    async def query(self) -> None:
        """Ask for the size."""
        await self._client.execute("query-balloon")

    async def change(self) -> None:
        """Set another target, until the guest reads it."""
        self._pages = self._pages % 1024 + 1
        await self._client.execute("balloon", {"value": GUEST_BYTES - (self._pages << PFN_SHIFT)})
        await asyncio.to_thread(self._read)

    def _read(self) -> None:
        while self._frontend.read_config().num_pages != self._pages:
            pass


async def _latencies(ask: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
    found: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or not found:
        started = time.monotonic()
        await ask()
        found.append(time.monotonic() - started)
        await asyncio.sleep(QUESTION_PAUSE_SECONDS)
    return found


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[-(-len(latencies) * 99 // 100) - 1]


class _Busy:
    """The process with all guests that are not idle."""

    def __init__(self, process: asyncio.subprocess.Process | None) -> None:
        self._process = process

    async def start(self) -> None:
        """Let them begin."""
        await self._say()

    async def stop(self) -> tuple[int, float]:
        """Let them end; return the bytes that they gave up, and in how many seconds.

        Raises:
            OperatorError: They have ended already.
        """
        await self._say()
        if self._process is None:
            return 0, SECONDS
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise OperatorError("the busy guests ended before they were told to")
        done = json.loads(line)
        return int(done["bytes"]), float(done["seconds"])

    async def _say(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(b"\n")
            await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def _busy(vms: Sequence[VmPaths]) -> AsyncIterator[_Busy]:
    if not vms:
        yield _Busy(None)
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ballast.bench.busy"),
        *(str(vm.vhost_user) for vm in vms),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            if (await process.stdout.readline()).strip() != b"ready":
                raise OperatorError("the busy guests did not start")
        yield _Busy(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()

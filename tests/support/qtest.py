"""A real QEMU without a guest: `-accel qtest` lets the test play CPU, firmware and kernel.

QEMU is up in a tenth of a second and does nothing by itself. Every register access is one line on
a socket. All of it is asynchronous, because QEMU stands still inside an access to the balloon until
the daemon, in the same event loop, has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from qemu.qmp import QMPClient

from ballast_protocol.errors import InternalError, OperatorError
from ballast_protocol.vhost_user.message import MemoryRegion
from support.driver import GuestRam, RamRegion

MIB = 1 << 20
START_TIMEOUT_SECONDS = 30.0
ANSWER_TIMEOUT_SECONDS = 30.0

SCRATCH_ADDRESS = 16 * MIB
"""Where a driver's rings go: above everything that a PC keeps low."""

SCRATCH_END = 32 * MIB
"""Where they end, with room to spare."""

SHARED_MEMORY = "memory-backend-memfd,id=mem,size={size},share=on"


class SharedRam(GuestRam):
    """RAM that belongs to QEMU, mapped here as well: one memfd, guest address = file offset."""

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        view = mmap.mmap(fd, size)
        self.regions = [RamRegion(MemoryRegion(0, size, 0, 0), fd, view)]
        self._next = SCRATCH_ADDRESS

    def free_scratch(self) -> None:
        """Begin allocating anew, for the next driver."""
        self._next = SCRATCH_ADDRESS

    def fill(self, byte: int = 0xA5) -> None:
        """Touch everything above the rings, so that the host backs every page of it."""
        view = self.regions[0].view
        for start in range(SCRATCH_END, len(view), MIB):
            view[start : start + MIB] = bytes([byte]) * MIB

    def holes(self) -> list[tuple[int, int]]:
        """Return what the host does not hold above the rings, as (first page, count)."""
        found = self.regions[0]
        holes: list[tuple[int, int]] = []
        start = SCRATCH_END
        while start < found.region.size:
            hole = os.lseek(found.fd, start, os.SEEK_HOLE)
            try:
                start = os.lseek(found.fd, hole, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                start = found.region.size
            if hole < start:
                holes.append((hole // mmap.PAGESIZE, (start - hole) // mmap.PAGESIZE))
        return holes

    def page_numbers(self, count: int) -> list[int]:
        """Return `count` adjacent pages far from the rings, highest first, as Linux sends them."""
        last = self.regions[0].region.size // mmap.PAGESIZE
        return list(range(last - 1, last - 1 - count, -1))


class Qtest:
    """QEMU's qtest protocol and its QMP, over two sockets to one process.

    Attributes:
        qmp: QEMU's monitor.
        process: QEMU.
        error_log: What QEMU has printed.
    """

    def __init__(self, process: asyncio.subprocess.Process, error_log: Path) -> None:
        self.process = process
        self.error_log = error_log
        self.qmp = QMPClient("qtest")
        self._streams: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        self._turn = asyncio.Lock()

    # Registers and memory

    async def command(self, line: str) -> str:
        """Send one command and return what follows its OK.

        Raises:
            OperatorError: QEMU refused it, or is gone.
        """
        async with self._turn, asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            try:
                answer = await self._ask(line)
            except OSError:
                answer = ""
            if not answer:
                status = await self.process.wait()
                raise OperatorError(f"QEMU ended with {status} in {line!r}: {self.errors()}")
        word, _, rest = answer.strip().partition(" ")
        if word != "OK":
            raise OperatorError(f"{line!r} was answered {answer!r}")
        return rest

    async def _ask(self, line: str) -> str:
        """Return the answer to one command; empty if QEMU has closed the connection."""
        reader, writer = await self._streams
        writer.write(line.encode() + b"\n")
        while (answer := (await reader.readline()).decode()).startswith("IRQ "):
            pass
        return answer

    async def outl(self, port: int, value: int) -> None:
        """Write a 32-bit I/O port."""
        await self.command(f"outl {port:#x} {value:#x}")

    async def inl(self, port: int) -> int:
        """Read a 32-bit I/O port."""
        return int(await self.command(f"inl {port:#x}"), 16)

    async def read(self, address: int, size: int) -> int:
        """Read a register of 1, 2, 4 or 8 bytes."""
        return int(await self.command(f"read{_WIDTHS[size]} {address:#x}"), 16)

    async def write(self, address: int, size: int, value: int) -> None:
        """Write a register of 1, 2, 4 or 8 bytes."""
        await self.command(f"write{_WIDTHS[size]} {address:#x} {value:#x}")

    async def read_config(self, bus: int, slot: int, offset: int) -> int:
        """Read 32 bits of the PCI configuration space of function 0 in a slot."""
        await self.outl(0xCF8, 1 << 31 | bus << 16 | slot << 11 | offset & 0xFC)
        return await self.inl(0xCFC)

    async def write_config(self, bus: int, slot: int, offset: int, value: int) -> None:
        """Write 32 bits of a PCI configuration space."""
        await self.outl(0xCF8, 1 << 31 | bus << 16 | slot << 11 | offset & 0xFC)
        await self.outl(0xCFC, value)

    # The process

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.process.pid

    @property
    def status(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self.process.returncode

    def errors(self) -> str:
        """Return what QEMU has printed."""
        return self.error_log.read_text(errors="replace")

    def ram(self) -> SharedRam:
        """Map QEMU's RAM; close it.

        Raises:
            InternalError: QEMU was started without a shared memfd.
        """
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(entry).startswith("/memfd:memory-backend-memfd"):
                    return SharedRam(os.open(entry, os.O_RDWR | os.O_CLOEXEC))
        raise InternalError("QEMU holds no memory-backend-memfd")

    async def assert_alive(self) -> None:
        """Check that QEMU runs, and that its main loop serves its monitor."""
        assert self.status is None, self.errors()
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            await self.qmp.execute("query-status")
        assert self.status is None, self.errors()

    # Starting and ending

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take QEMU's connection of the qtest protocol."""
        self._streams.set_result((reader, writer))

    async def close(self) -> None:
        """End QEMU, whatever it is doing, and the connections."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        with contextlib.suppress(Exception):
            await self.qmp.disconnect()
        if self._streams.done():
            _, writer = self._streams.result()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        else:
            self._streams.cancel()


_WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}


def machine_arguments(memory_bytes: int, memory: str = SHARED_MEMORY) -> tuple[str, ...]:
    """Return the machine: a q35 with RAM in a memory backend, or in none if `memory` is empty."""
    size = ("-m", f"size={memory_bytes // 1024}K")
    base = ("-nodefaults", "-no-user-config", "-display", "none")
    if not memory:
        return (*base, "-machine", "q35", *size)
    backend = memory.format(size=memory_bytes)
    return (*base, "-machine", "q35,memory-backend=mem", "-object", backend, *size)


@asynccontextmanager
async def running_qtest(qemu: Path, *arguments: str) -> AsyncIterator[Qtest]:
    """Run a QEMU under qtest; it connects to both sockets, so nobody has to try again and again.

    Args:
        qemu: The program.
        arguments: Machine and devices.
    """
    with tempfile.TemporaryDirectory(prefix="qt-") as name:
        directory = Path(name)
        listener = QMPClient("qtest")
        await listener.start_server(str(directory / "qmp"))
        waiting: list[Qtest] = []
        server = await asyncio.start_unix_server(
            lambda reader, writer: waiting[0].take(reader, writer), directory / "qtest"
        )
        with (directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(qemu), *arguments, "-accel", "qtest", "-qtest-log", "/dev/null"),
                *("-qtest", f"unix:{directory}/qtest", "-qmp", f"unix:{directory}/qmp"),
                *("-run-with", "exit-with-parent=on"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        qtest = Qtest(process, directory / "log")
        qtest.qmp = listener
        waiting.append(qtest)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await _accepted(qtest)
            yield qtest
        finally:
            await qtest.close()
            server.close()
            await server.wait_closed()


async def _accepted(qtest: Qtest) -> None:
    """Wait until QEMU has connected to its monitor; if it ends instead, say why."""
    accepting = asyncio.ensure_future(qtest.qmp.accept())
    ended = asyncio.ensure_future(qtest.process.wait())
    try:
        await asyncio.wait({accepting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if accepting.done() and accepting.exception() is None:
            return
        raise OperatorError(f"QEMU ended with {await ended}: {qtest.errors()}")
    finally:
        for task in (accepting, ended):
            task.cancel()
        await asyncio.wait({accepting, ended})

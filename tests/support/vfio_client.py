"""A vfio-user client that behaves as QEMU 11.1's `vfio-user-pci` does, message for message.

    async with await VfioClient.connect(path) as client:
        await client.realize(ram)
        await client.enable_msix(6)
        await client.write(4, 0x14, b"\\x00")
        await client.interrupted(2)

It has QEMU's one big lock as well: an access of the guest holds it until the reply is there, and
the server's own DMA commands are served only while nobody holds it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ballast_protocol.vfio_user.codes import (
    Command,
    DeviceFlag,
    DmaMapFlag,
    DmaUnmapFlag,
    IrqFlag,
    IrqSetFlag,
    PciIrq,
    PciRegion,
    RegionFlag,
)
from ballast_protocol.vfio_user.message import (
    CapabilityHead,
    DeviceInfo,
    DmaMapping,
    DmaUnmapping,
    IrqInfo,
    IrqSet,
    RegionAccess,
    RegionInfo,
)
from support.driver import GuestRam
from support.link import PATIENCE_SECONDS, ready
from support.vfio_link import ClientError, RefusedCommandError, VfioLink, Waiting
from support.vfio_messages import QEMU_VERSION

_SPARSE_MMAP, _MSIX_CAPABILITY = 1, 0x11


@dataclass(frozen=True)
class Range:
    """A DMA range as it is announced, and the file that goes along, if any."""

    address: int
    size: int
    offset: int = 0
    fd: int | None = None
    flags: DmaMapFlag = DmaMapFlag.READ | DmaMapFlag.WRITE


class VfioClient(VfioLink):
    """One vfio-user session, over a connected socket that it owns.

    Attributes:
        info: What DEVICE_GET_INFO said.
        regions: What DEVICE_GET_REGION_INFO said of each region that was asked about.
        config: The configuration space, as it was read first.
        msix_size: How many vectors the MSI-X capability names; 0 without one.
        mapped: The areas of regions that the guest reaches without a message.
        ranges: The DMA ranges that are announced now.
    """

    def __init__(self, sock: socket.socket, *, posted_writes: bool = True) -> None:
        super().__init__(sock)
        self._posted = posted_writes
        self._eventfds: dict[tuple[int, int], int] = {}
        self._max_fds = 8
        self.info = DeviceInfo(0)
        self.regions: dict[int, RegionInfo] = {}
        self.config = b""
        self.msix_size = 0
        self.mapped: dict[tuple[int, int], mmap.mmap] = {}
        self.ranges: list[Range] = []

    @classmethod
    async def connect(cls, path: Path | str, *, posted_writes: bool = True) -> Self:
        """Connect to a server that listens at `path`."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, posted_writes=posted_writes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()
        if error is None and self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Hang up and drop everything, without any farewell, as QEMU does at its exit."""
        await self.hang_up()
        for view in self.mapped.values():
            view.close()
        for fd in self._eventfds.values():
            os.close(fd)
        self.mapped, self._eventfds = {}, {}

    # Plugging in

    async def realize(self, ram: GuestRam) -> None:
        """Do what QEMU does when the device is plugged in."""
        async with self.lock:
            self.ram = ram
            await self._say_version()
            await self._map(self._ram_ranges(ram))
            await self._look_at_regions()
            with suppress(RefusedCommandError):  # QEMU goes on, with a warning
                await self._irq_info(PciIrq.ERR)
            await self._look_at_config()
            await self._disable_irqs(PciIrq.INTX)
            await self._reset()
            if self.config[0x3D]:
                await self._set_eventfds(PciIrq.INTX, 0, 1)

    async def _say_version(self) -> None:
        request = bytes(4) + QEMU_VERSION
        answer = await self.ask(Command.VERSION, request, room=len(request))
        if answer[:2] != b"\0\0" or answer[-1]:
            raise ClientError(f"corrupt version reply {answer!r}")
        if b'"max_msg_fds":16' in answer.replace(b" ", b""):
            self._max_fds = 16

    async def _look_at_regions(self) -> None:
        answer = await self.ask(Command.DEVICE_GET_INFO, DeviceInfo(16).pack(), room=16)
        self.info = DeviceInfo.unpack(answer)
        if not self.info.flags & DeviceFlag.PCI:
            raise ClientError("not a PCI device")
        if self.info.region_count <= PciRegion.CONFIG or self.info.irq_count <= PciIrq.MSIX:
            raise ClientError(f"too few regions or interrupt types: {self.info}")
        for index in (*range(PciRegion.ROM), PciRegion.CONFIG):
            await self._look_at_region(index)

    async def _look_at_region(self, index: int) -> None:
        argsz, fds = RegionInfo.SIZE, list[int]()
        while True:
            request = RegionInfo(argsz, RegionFlag.NONE, index).pack()
            command = Command.DEVICE_GET_REGION_INFO
            answer, fds = await self.ask_for_fds(command, request, argsz, fds_wanted=1)
            found = RegionInfo.unpack(answer)
            if found.argsz <= argsz:
                break
            argsz = found.argsz
            for fd in fds:
                os.close(fd)
        self.regions[index] = found
        if found.flags & RegionFlag.MMAP:
            self._posted = False
        for fd in fds:
            self._map_region(index, found, answer, fd)
            os.close(fd)

    def _map_region(self, index: int, info: RegionInfo, answer: bytes, fd: int) -> None:
        areas, at = [(0, info.size)], info.capability_offset
        while at:
            head = CapabilityHead.unpack(answer, at)
            if head.kind == _SPARSE_MMAP:
                body = answer[at + CapabilityHead.SIZE :]
                count = int.from_bytes(body[:4], "little")
                areas = [
                    (
                        int.from_bytes(body[8 + 16 * n :][:8], "little"),
                        int.from_bytes(body[16 + 16 * n :][:8], "little"),
                    )
                    for n in range(count)
                ]
            at = head.next
        for offset, size in areas:
            self.mapped[index, offset] = mmap.mmap(fd, size, offset=info.offset + offset)

    async def _irq_info(self, index: int) -> IrqInfo:
        request = IrqInfo(IrqInfo.SIZE, IrqFlag.NONE, index).pack()
        return IrqInfo.unpack(await self.ask(Command.DEVICE_GET_IRQ_INFO, request, room=16))

    async def _look_at_config(self) -> None:
        size = min(self.regions[PciRegion.CONFIG].size, 256)
        self.config = await self._read_region(PciRegion.CONFIG, 0, size)
        await self._write_region(PciRegion.CONFIG, 0x30, b"\x00\xf8\xff\xff")
        if any(await self._read_region(PciRegion.CONFIG, 0x30, 4)):
            raise ClientError("a ROM that has no region")
        await self._write_region(PciRegion.CONFIG, 0x30, bytes(4))
        for at in range(0x10, 0x28, 4):
            await self._read_region(PciRegion.CONFIG, at, 4)
        at = self.config[0x34]
        while at and self.config[at] != _MSIX_CAPABILITY:
            at = self.config[at + 1]
        if at:
            control = await self._read_region(PciRegion.CONFIG, at + 2, 2)
            self.msix_size = (int.from_bytes(control, "little") & 0x7FF) + 1
            info = await self._irq_info(PciIrq.MSIX)
            if info.count < self.msix_size:
                raise ClientError(f"{self.msix_size} vectors in config space, but {info}")
        if self.config[0x3D]:
            await self._set_eventfds(PciIrq.INTX, 0, 1)

    # Memory

    @staticmethod
    def _ram_ranges(ram: GuestRam) -> list[Range]:
        found = [item.region for item in ram.regions]
        fds = [item.fd for item in ram.regions]
        return [
            Range(region.guest_address, region.size, region.mmap_offset, fd)
            for region, fd in zip(found, fds, strict=True)
        ]

    async def map(self, *ranges: Range) -> None:
        """Announce ranges without waiting in between; wait for the last reply."""
        async with self.lock:
            await self._map(ranges)

    async def unmap(self, *ranges: Range) -> None:
        """Take ranges back, likewise."""
        async with self.lock:
            await self._unmap(ranges)

    async def shuffle(self, *pieces: Range, rounds: int = 1) -> None:
        """Do what the firmware's PAM and SMRAM registers cause: all RAM in pieces, and whole again.

        Args:
            pieces: What RAM consists of in between.
            rounds: How often.
        """
        for _ in range(rounds):
            whole = list(self.ranges)
            for old, new in ((whole, list(pieces)), (list(pieces), whole)):
                await self.unmap(*old)
                await self.map(*new)

    async def _map(self, ranges: Sequence[Range]) -> None:
        waiting = []
        for item in ranges:
            payload = DmaMapping(32, item.flags, item.offset, item.address, item.size).pack()
            fds = () if item.fd is None else (item.fd,)
            waiting.append(await self.send(Command.DMA_MAP, payload, fds=fds))
            self.ranges.append(item)
        await self._settle(waiting)

    async def _unmap(self, ranges: Sequence[Range]) -> None:
        waiting = []
        for item in ranges:
            payload = DmaUnmapping(24, DmaUnmapFlag.NONE, item.address, item.size).pack()
            waiting.append(await self.send(Command.DMA_UNMAP, payload, room=24))
            self.ranges.remove(item)
        await self._settle(waiting)

    async def _settle(self, waiting: Sequence[Waiting]) -> None:
        for item in waiting:
            await self.answer(item)

    # The guest

    async def read(self, region: int, offset: int, size: int) -> bytes:
        """Load, holding the lock all the while; from shared memory where the region is mapped."""
        for (index, start), view in self.mapped.items():
            if index == region and start <= offset and offset + size <= start + len(view):
                return view[offset - start : offset - start + size]
        async with self.lock:
            return await self._read_region(region, offset, size)

    async def write(self, region: int, offset: int, data: bytes) -> None:
        """Store; without waiting, if it goes to a BAR and no region is mapped."""
        for (index, start), view in self.mapped.items():
            if index == region and start <= offset and offset + len(data) <= start + len(view):
                view[offset - start : offset - start + len(data)] = data
                return
        async with self.lock:
            if self._posted and region < PciRegion.ROM:
                await self._post(region, offset, data)
            else:
                await self._write_region(region, offset, data)

    async def _read_region(self, region: int, offset: int, size: int) -> bytes:
        head = RegionAccess(offset, region, size).pack()
        answer = await self.ask(Command.REGION_READ, head, room=len(head) + size)
        if answer[: len(head)] != head or len(answer) != len(head) + size:
            raise ClientError(f"{answer!r} answers a read of {size} bytes")
        return answer[len(head) :]

    async def _write_region(self, region: int, offset: int, data: bytes) -> None:
        head = RegionAccess(offset, region, len(data)).pack()
        await self.ask(Command.REGION_WRITE, head + data, room=len(head) + len(data))

    async def _post(self, region: int, offset: int, data: bytes) -> None:
        payload = RegionAccess(offset, region, len(data)).pack() + data
        await self.post(Command.REGION_WRITE, payload)

    async def reset(self) -> None:
        """Do what a reset of the machine causes: twice, as QEMU does."""
        async with self.lock:
            for _ in range(2):
                await self._disable_irqs(PciIrq.MSIX if self.msix_size else PciIrq.INTX)
                await self._reset()
                if self.config[0x3D]:
                    await self._set_eventfds(PciIrq.INTX, 0, 1)
                for at in range(0x10, 0x28, 4):
                    await self._write_region(PciRegion.CONFIG, at, bytes(4))

    async def _reset(self) -> None:
        if self.info.flags & DeviceFlag.RESET:
            await self.ask(Command.DEVICE_RESET)

    # Interrupts

    async def enable_msix(self, count: int) -> None:
        """Enable vectors as the guest's driver makes QEMU do it: one after the other, all anew."""
        async with self.lock:
            await self._disable_irqs(PciIrq.INTX)
            await self._set_eventfds(PciIrq.MSIX, 0, 1, unused=True)
            for vectors in range(1, count + 1):
                await self._disable_irqs(PciIrq.MSIX)
                await self._set_eventfds(PciIrq.MSIX, 0, vectors)

    async def end_intx(self) -> None:
        """Do what QEMU does at the end of an INTx: let the device raise it again."""
        async with self.lock:
            flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_UNMASK
            await self._set_irqs(flags, PciIrq.INTX, 0, 1)

    async def interrupted(self, vector: int, index: int = PciIrq.MSIX) -> int:
        """Wait until an interrupt was raised, and return how often since the last look."""
        loop = asyncio.get_running_loop()
        fd = self._eventfds[index, vector]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (count := self.take_interrupts(vector, index)):
                await ready(loop.add_reader, loop.remove_reader, fd)
        return count

    def take_interrupts(self, vector: int, index: int = PciIrq.MSIX) -> int:
        """Return how often an interrupt was raised since the last look."""
        try:
            return os.eventfd_read(self._eventfds[index, vector])
        except BlockingIOError:
            return 0

    async def _disable_irqs(self, index: int) -> None:
        await self._set_irqs(IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER, index, 0, 0)
        for key in [key for key in self._eventfds if key[0] == index]:
            os.close(self._eventfds.pop(key))

    async def _set_eventfds(
        self, index: int, start: int, count: int, *, unused: bool = False
    ) -> None:
        flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER
        for first in range(start, start + count, self._max_fds):
            chunk = range(first, min(first + self._max_fds, start + count))
            for vector in () if unused else chunk:
                if (index, vector) not in self._eventfds:
                    fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                    self._eventfds[index, vector] = fresh
            fds = () if unused else [self._eventfds[index, vector] for vector in chunk]
            await self._set_irqs(flags, index, first, len(chunk), fds)

    async def _set_irqs(
        self, flags: IrqSetFlag, index: int, start: int, count: int, fds: Sequence[int] = ()
    ) -> None:
        payload = IrqSet(IrqSet.SIZE, flags, index, start, count).pack()
        await self.ask(Command.DEVICE_SET_IRQS, payload, fds=fds)

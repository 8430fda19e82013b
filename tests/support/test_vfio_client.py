"""The scripted client against the protocol room's server, over a real socket with real fds."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import DmaMapFlag, IrqFlag, PciIrq, RegionFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.device import Area, Device, Irq, Region, SparseMmap
from ballast_protocol.vfio_user.events import Completion, Request
from ballast_protocol.vfio_user.message import MAX_FDS
from support.driver import GuestRam, RamBlock
from support.link import ready
from support.vfio_client import Range, VfioClient
from support.vfio_link import ClientError, RefusedCommandError

VECTORS = 20
RIGHTS = RegionFlag.READ | RegionFlag.WRITE


def device(*, mapped: bool = False) -> Device:
    bar = Region(0x4000)
    if mapped:
        sparse = SparseMmap((Area(0x2000, 0x1000),))
        bar = Region(0x4000, RIGHTS | RegionFlag.MMAP, (sparse,))
    intx = IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
    irqs = (Irq(1, intx), Irq(0), Irq(VECTORS), Irq(0), Irq(0))
    return Device((bar, *[Region(0)] * 6, Region(256)), irqs)


def config_space() -> bytearray:
    config = bytearray(256)
    config[0x34], config[0x3D] = 0x40, 1
    config[0x40:0x44] = bytes([0x11, 0, VECTORS - 1, 0])
    return config


class SmallServer:
    """The least shell that a `ServerConnection` can have. It notes everything that it is told."""

    def __init__(self, sock: socket.socket, connection: ServerConnection) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.connection = connection
        self.events: list[events.Event] = []
        self.completions: asyncio.Queue[Completion] = asyncio.Queue()
        self.spaces = {0: bytearray(0x4000), 7: config_space()}
        self.eventfds: dict[tuple[int, int], int] = {}
        self.inodes: list[int] = []
        self.page = os.memfd_create("page", os.MFD_CLOEXEC)
        os.ftruncate(self.page, 0x4000)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        fds: list[int] = []
        while True:
            await ready(loop.add_reader, loop.remove_reader, self._socket.fileno())
            wanted = self.connection.bytes_wanted
            data, came, _, _ = socket.recv_fds(self._socket, wanted, MAX_FDS)
            if not data:
                return
            fds += came
            found = self.connection.receive(data, len(came))
            if isinstance(found, Request):
                await self._answer(found, fds)
                fds = []
            elif found is not None:
                self.completions.put_nowait(found)

    async def _answer(self, request: Request, fds: list[int]) -> None:
        self.events.append(request.event)
        self._keep(request.event, fds)
        for fd in fds:
            os.close(fd)
        answer, along = self.connection.auto_reply(request), list[int]()
        if answer is None:
            answer, along = self._finish(request)
        if along:
            socket.send_fds(self._socket, [answer], along)
        else:
            await asyncio.get_running_loop().sock_sendall(self._socket, answer)

    def _keep(self, event: events.Event, fds: list[int]) -> None:
        match event:
            case events.SetIrqEventfds(index, start, has_fds=True):
                for number, fd in enumerate(fds):
                    self.eventfds[index, start + number] = fd
                fds.clear()
            case events.DisableIrqs(index):
                for key in [key for key in self.eventfds if key[0] == index]:
                    os.close(self.eventfds.pop(key))
            case events.DmaMap(has_fd=True):
                self.inodes.append(os.fstat(fds[0]).st_ino)
            case _:
                pass

    def _finish(self, request: Request) -> tuple[bytes, list[int]]:
        match request.event:
            case events.RegionRead(region, offset, count):
                data = bytes(self.spaces[region][offset : offset + count])
                return self.connection.reply_data(request, data), []
            case events.RegionWrite(0, offset, data):
                self.spaces[0][offset : offset + len(data)] = data
            case events.GetRegionInfo():
                message, with_fds = self.connection.describe(request)
                return message, [self.page] if with_fds else []
            case _:
                pass
        return self.connection.ack(request), []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()
        os.close(self.page)
        for fd in self.eventfds.values():
            os.close(fd)

    def names(self) -> list[str]:
        """Return what came since the last call, by name."""
        found = [type(event).__name__ for event in self.events]
        self.events.clear()
        return found


@asynccontextmanager
async def pair(*, mapped: bool = False) -> AsyncIterator[tuple[VfioClient, SmallServer]]:
    ours, theirs = socket.socketpair()
    server = SmallServer(theirs, ServerConnection(device(mapped=mapped)))
    task = asyncio.create_task(server.run())
    try:
        async with VfioClient(ours) as client:
            yield client, server
        await task
    finally:
        task.cancel()
        server.close()


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam.of(RamBlock(0, 0xA0000), RamBlock(1 << 20, 1 << 20)) as ram:
        yield ram


async def test_a_device_is_plugged_in_message_for_message(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        assert server.names() == [
            "Version",
            "DmaMap",
            "DmaMap",
            "GetInfo",
            *["GetRegionInfo"] * 7,
            "GetIrqInfo",
            "RegionRead",
            "RegionWrite",
            "RegionRead",
            "RegionWrite",
            *["RegionRead"] * 7,
            "GetIrqInfo",
            "SetIrqEventfds",
            "DisableIrqs",
            "DeviceReset",
            "SetIrqEventfds",
        ]
        assert client.msix_size == VECTORS
        assert server.inodes == [os.fstat(item.fd).st_ino for item in ram.regions]
        assert len(server.connection.maps) == 2


async def test_accesses_are_posted_or_waited_for(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        server.names()
        await client.write(0, 0x3004, b"\1\0")
        assert await client.read(0, 0x3004, 2) == b"\1\0"
        assert server.names() == ["RegionWrite", "RegionRead"]
        with pytest.raises(RefusedCommandError) as raised:
            await client.read(0, 0x3FFF, 2)
        assert raised.value.args[1] == errno.EINVAL


async def test_a_mapped_page_is_reached_without_a_message(ram: GuestRam) -> None:
    async with pair(mapped=True) as (client, server):
        await client.realize(ram)
        assert server.names().count("GetRegionInfo") == 8
        os.pwrite(server.page, b"\x10\x20\x30\x40", 0x2000)
        assert await client.read(0, 0x2000, 4) == b"\x10\x20\x30\x40"
        await client.write(0, 0x2004, b"\5")
        assert os.pread(server.page, 1, 0x2004) == b"\5"
        assert server.names() == []
        # From now on no write is posted: it has been done when the call returns.
        await client.write(0, 0x3000, b"\7")
        assert server.names() == ["RegionWrite"]


async def test_vectors_come_in_chunks_and_raise_interrupts(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        server.names()
        await client.enable_msix(VECTORS)
        chunks = [
            (event.start, event.count, event.has_fds)
            for event in server.events
            if isinstance(event, events.SetIrqEventfds)
        ]
        assert chunks[:3] == [(0, 1, False), (0, 1, True), (0, 2, True)]
        assert chunks[-2:] == [(0, 16, True), (16, 4, True)]
        assert client.take_interrupts(19) == 0
        os.eventfd_write(server.eventfds[PciIrq.MSIX, 19], 1)
        assert await client.interrupted(19) == 1


async def test_intx_is_ended_and_survives_a_reset(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        await client.reset()
        server.names()
        await client.end_intx()
        assert server.names() == ["ActOnIrqs"]


async def test_all_of_memory_is_shuffled(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        server.names()
        low = ram.regions[0].fd
        pieces = [Range(0, 0x90000, 0, low), Range(0x90000, 0x10000, 0x90000, low, DmaMapFlag.READ)]
        await client.shuffle(*pieces, rounds=3)
        assert server.names() == [*["DmaUnmap"] * 2, *["DmaMap"] * 2] * 6
        assert len(server.connection.maps) == 2
        await client.unmap(*client.ranges)
        assert len(server.connection.maps) == 0


async def test_the_servers_own_commands_wait_for_the_lock(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        ram.write(0x5000, b"in the guest")
        command = server.connection.dma_read(0x5000, 12)
        async with client.lock:
            await server.send(command.data)
            await asyncio.sleep(0)
            assert server.completions.empty()
        done = await server.completions.get()
        assert done == events.DmaReadDone(command.command_id, 0x5000, b"in the guest")
        command = server.connection.dma_write(0x5003, b"THE")
        await server.send(command.data)
        assert isinstance(await server.completions.get(), events.DmaWriteDone)
        assert ram.read(0x5000, 12) == b"in THE guest"


async def test_memory_that_is_not_there_is_refused(ram: GuestRam) -> None:
    async with pair() as (client, server):
        await client.realize(ram)
        await client.map(Range(1 << 40, 4096))
        await server.send(server.connection.dma_read(1 << 40, 16).data)
        assert await server.completions.get() == events.DmaFailed(0, errno.ENODEV)


async def test_a_reply_too_long_is_what_the_client_cannot_put_up_with(ram: GuestRam) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = VfioClient(ours)
        realizing = asyncio.create_task(client.realize(ram))
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        asked = await loop.sock_recv(theirs, 4096)
        assert len(asked) == 214
        await loop.sock_sendall(theirs, asked[:4] + bytes.fromhex("d7000000 01000000 00000000"))
        with pytest.raises(ClientError, match="larger than recv buffer"):
            await realizing
        # Whoever did not look is told at the end.
        with pytest.raises(ClientError, match="larger than recv buffer"):
            async with client:
                pass

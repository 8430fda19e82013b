"""The scripted front-end against the protocol room's back-end, over a real socket with real fds."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.channel import UNKNOWN_REQUEST, Acknowledgement, BackendChannel
from ballast_protocol.vhost_user.connection import BackendConnection
from ballast_protocol.vhost_user.events import Event
from ballast_protocol.vhost_user.message import MAX_FDS, ProtocolFeature, Request
from support.driver import DriverQueue, GuestRam, RamBlock
from support.frontend import QEMU_PROTOCOL_FEATURES, CrashedError, Frontend
from support.link import RefusedError, ready
from support.vhost_messages import ALL, CONFIG_BYTES, FEATURES, finish, fresh


class SmallBackend:
    """The least shell that a `BackendConnection` can have. It notes everything that it is told."""

    def __init__(self, sock: socket.socket, connection: BackendConnection) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._connection = connection
        self.events: list[Event] = []
        self.channel_socket: socket.socket | None = None
        self.call_fds: dict[int, int] = {}
        self.refuse: type[Event] | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        fds: list[int] = []
        while True:
            event = None
            if self._connection.bytes_wanted:
                await ready(loop.add_reader, loop.remove_reader, self._socket.fileno())
                wanted = self._connection.bytes_wanted
                data, came, _, _ = socket.recv_fds(self._socket, wanted, MAX_FDS)
                if not data:
                    return
                fds += came
                event = self._connection.receive(data, len(came))
            if event is not None:
                self._keep(event, fds)
                fds = []
                await loop.sock_sendall(self._socket, self._answer(event))

    def _answer(self, event: Event) -> bytes:
        if self.refuse is not None and isinstance(event, self.refuse):
            return self._connection.ack(ok=False)
        return finish(self._connection, event)

    def _keep(self, event: Event, fds: list[int]) -> None:
        self.events.append(event)
        match event:
            case events.SetBackendReqFd():
                self._drop_channel()
                self.channel_socket = socket.socket(fileno=fds.pop())
                self.channel_socket.setblocking(False)
            case events.SetVringCall(index, has_fd=True):
                if index in self.call_fds:
                    os.close(self.call_fds[index])
                self.call_fds[index] = fds.pop()
            case _:
                pass
        for fd in fds:
            os.close(fd)

    def _drop_channel(self) -> None:
        if self.channel_socket is not None:
            self.channel_socket.close()

    def close(self) -> None:
        self._drop_channel()
        self._socket.close()
        for fd in self.call_fds.values():
            os.close(fd)

    def names(self) -> list[str]:
        """Return what came since the last call, by name."""
        found = [type(event).__name__ for event in self.events]
        self.events.clear()
        return found


@asynccontextmanager
async def pair(
    protocol_features: ProtocolFeature = ALL, num_vqs: int = 2
) -> AsyncIterator[tuple[Frontend, SmallBackend]]:
    ours, theirs = socket.socketpair()
    backend = SmallBackend(theirs, fresh(protocol_features))
    task = asyncio.create_task(backend.run())
    try:
        async with Frontend(ours, num_vqs=num_vqs) as frontend:
            yield frontend, backend
        await task
    finally:
        task.cancel()
        backend.close()


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam.of(RamBlock(0, 1 << 20), RamBlock(1 << 32, 1 << 20)) as ram:
        yield ram


SPARSE = ALL & ~(
    ProtocolFeature.STATUS | ProtocolFeature.RESET_DEVICE | ProtocolFeature.GPA_ADDRESSES
)
HANDSHAKE = [
    "GetFeatures",
    "GetProtocolFeatures",
    "SetProtocolFeatures",
    "GetQueueNum",
    "GetMaxMemSlots",
    "SetBackendReqFd",
    "SetOwner",
    "GetFeatures",
    *("SetVringCall", "SetVringErr") * 2,
]
RING = ["SetVringNum", "SetVringBase", "SetVringAddr", "SetVringKick", "SetVringCall"]


async def test_a_session_message_for_message(ram: GuestRam) -> None:
    async with pair(SPARSE) as (frontend, backend):
        await frontend.handshake()
        assert backend.names() == HANDSHAKE
        assert (frontend.queue_num, frontend.mem_slots) == (5, 32)
        assert frontend.protocol_features == SPARSE & QEMU_PROTOCOL_FEATURES

        queue = DriverQueue(ram, 16, start_index=9)
        await frontend.start(ram, {0: queue}, FEATURES)
        addresses = next(e for e in backend.events if isinstance(e, events.SetVringAddr))
        assert addresses.descriptor == ram.user_address(queue.descriptors)
        assert events.SetVringBase(0, 9) in backend.events
        assert backend.names() == [
            "SetFeatures",
            *["AddMemRegion"] * 2,
            *RING,
            *["SetVringEnable"] * 2,
            *["SetVringCall"] * 2,
        ]

        assert await frontend.stop() == {0: 77}
        assert backend.names() == ["SetVringEnable", "SetVringEnable", "GetVringBase"]

        await frontend.start(ram, {0: queue}, FEATURES, bases={0: 77})
        assert events.SetVringBase(0, 77) in backend.events
        assert "AddMemRegion" not in backend.names()


async def test_a_second_handshake_announces_all_memory_again(ram: GuestRam) -> None:
    async with pair(SPARSE) as (frontend, backend):
        for _ in range(2):
            await frontend.handshake()
            assert backend.names() == HANDSHAKE
            await frontend.start(ram, {}, FEATURES)
            assert backend.names().count("AddMemRegion") == 2
            await frontend.stop()
            backend.names()


async def test_hot_plug_sends_what_changed(ram: GuestRam) -> None:
    async with pair(SPARSE) as (frontend, backend):
        await frontend.handshake()
        await frontend.share_memory(ram)
        backend.names()
        added = ram.add(RamBlock(1 << 33, 1 << 20))
        await frontend.share_memory(ram)
        assert backend.events == [events.AddMemRegion(added.region)]
        ram.remove(added)
        await frontend.share_memory(ram)
        assert backend.events[1:] == [events.RemMemRegion(added.region)]


async def test_without_memory_slots_the_whole_table_is_sent(ram: GuestRam) -> None:
    async with pair(SPARSE & ~ProtocolFeature.CONFIGURE_MEM_SLOTS) as (frontend, backend):
        await frontend.handshake()
        backend.names()
        await frontend.share_memory(ram)
        assert backend.events == [events.SetMemTable(tuple(item.region for item in ram.regions))]


async def test_guest_addresses_where_agreed(ram: GuestRam) -> None:
    async with pair(SPARSE | ProtocolFeature.GPA_ADDRESSES) as (frontend, backend):
        await frontend.handshake()
        queue = DriverQueue(ram, 16)
        await frontend.start(ram, {0: queue}, FEATURES)
        addresses = next(e for e in backend.events if isinstance(e, events.SetVringAddr))
        regions = [e.region for e in backend.events if isinstance(e, events.AddMemRegion)]
        assert addresses.descriptor == queue.descriptors
        assert [region.user_address for region in regions] == [0, 1 << 32]


async def test_status_without_acknowledgements(ram: GuestRam) -> None:
    async with pair(ProtocolFeature.STATUS | ProtocolFeature.CONFIG) as (frontend, backend):
        await frontend.handshake()
        await frontend.ask_u64(Request.GET_FEATURES)
        backend.names()
        await frontend.start(ram, {}, FEATURES)
        await frontend.ask_u64(Request.GET_FEATURES)
        assert backend.names() == [
            "SetFeatures",
            "GetStatus",
            "SetStatus",
            "SetMemTable",
            # Without acknowledgements a GET_FEATURES follows each, so that it has been done.
            *["SetVringEnable", "GetFeatures"] * 2,
            *["SetVringCall"] * 2,
            "GetFeatures",
        ]


async def test_a_refusal_is_told() -> None:
    async with pair() as (frontend, backend):
        await frontend.handshake()
        backend.refuse = events.SetConfig
        with pytest.raises(RefusedError, match="SET_CONFIG was answered 1"):
            await frontend.write_config(bytes(16))


async def test_config_access() -> None:
    async with pair() as (frontend, backend):
        await frontend.handshake()
        assert await frontend.read_config() == CONFIG_BYTES
        await frontend.write_config(b"\xff" * 16)
        written = backend.events[-1]
        assert isinstance(written, events.SetConfig)
        assert written.data == b"\xff" * 16


async def test_dirty_logging_touches_the_running_rings(ram: GuestRam) -> None:
    async with pair(SPARSE & ~ProtocolFeature.LOG_SHMFD) as (frontend, backend):
        await frontend.handshake()
        await frontend.start(ram, {1: DriverQueue(ram, 16)}, FEATURES)
        backend.names()
        await frontend.log_dirty_pages(True)
        base, features, address = backend.events
        assert base == events.SetLogBase(1 << 16, 0, has_fd=False)
        assert isinstance(features, events.SetFeatures)
        assert features.logs_writes
        assert isinstance(address, events.SetVringAddr)
        assert (address.index, address.flags) == (1, 1)


async def test_interrupts_arrive(ram: GuestRam) -> None:
    async with pair() as (frontend, backend):
        await frontend.handshake()
        await frontend.start(ram, {1: DriverQueue(ram, 16)}, FEATURES)
        assert frontend.take_calls(1) == 0
        os.eventfd_write(backend.call_fds[1], 2)
        assert await frontend.called(1) == 2


async def test_a_config_change_is_acknowledged(ram: GuestRam) -> None:
    loop = asyncio.get_running_loop()
    async with pair() as (frontend, backend):
        await frontend.handshake()
        await frontend.start(ram, {}, FEATURES)
        assert backend.channel_socket is not None
        channel = BackendChannel()
        message = channel.config_change(need_reply=True)
        await loop.sock_sendall(backend.channel_socket, message)
        await frontend.config_changed()
        answer = await loop.sock_recv(backend.channel_socket, 100)
        assert channel.receive(answer) == [Acknowledgement(2, 0)]


async def test_half_a_header_holds_the_lock_until_it_is_completed(ram: GuestRam) -> None:
    loop = asyncio.get_running_loop()
    async with pair() as (frontend, backend):
        await frontend.handshake()
        await frontend.start(ram, {}, FEATURES)
        assert backend.channel_socket is not None
        channel = BackendChannel()
        change = channel.split_config_change(need_reply=True)
        await loop.sock_sendall(backend.channel_socket, change.first)
        await frontend.reading.wait()
        assert frontend.lock.locked()
        stopping = asyncio.create_task(frontend.stop())
        await asyncio.sleep(0)
        assert frontend.started
        await loop.sock_sendall(backend.channel_socket, change.cancel)
        await stopping
        answer = await loop.sock_recv(backend.channel_socket, 100)
        assert channel.receive(answer) == [Acknowledgement(UNKNOWN_REQUEST, 1)]
        assert (frontend.cancelled, frontend.config_changes) == (1, 0)


async def test_a_config_change_while_stopped_is_a_crash() -> None:
    loop = asyncio.get_running_loop()

    async def provoke() -> None:
        async with pair() as (frontend, backend):
            await frontend.handshake()
            assert backend.channel_socket is not None
            await loop.sock_sendall(backend.channel_socket, BackendChannel().config_change())
            with pytest.raises(CrashedError):
                await frontend.config_changed()

    # Whoever did not look is told at the end.
    with pytest.raises(CrashedError, match="while the device is stopped"):
        await provoke()


async def test_raw_bytes_reach_the_back_end() -> None:
    async with pair() as (frontend, backend):
        read, write = os.pipe()
        try:
            await frontend.send_raw(bytes.fromhex("0d000000 01000000 08000000 01000000"), [write])
            await frontend.send_raw(bytes(4))
        finally:
            os.close(read)
            os.close(write)
        assert await frontend.ask_u64(Request.GET_FEATURES)
        assert backend.events[0] == events.SetVringCall(1, has_fd=True)

"""A vhost-user front-end that behaves as QEMU 11.1's test device does, message for message.

    async with await Frontend.connect(path) as frontend:
        await frontend.handshake()
        await frontend.start(ram, {0: inflate, 1: deflate}, features)
        inflate.add_out(pfns)
        frontend.kick(0)
        await frontend.called(0)
        bases = await frontend.stop()

It has QEMU's one big lock as well: everything that QEMU does under it waits while a guest's access
to the config space waits for the back-end, and while half a header is on the back-end's channel.
And it "crashes" where QEMU does: when told of a config change while the device is stopped.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ballast_protocol.vhost_user.message import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    REPLY_FLAGS,
    RING_NO_FD,
    BackendRequest,
    ConfigAccess,
    ConfigFlag,
    Header,
    LogDescription,
    MemoryRegion,
    ProtocolFeature,
    Request,
    U64Payload,
    VringAddress,
    VringAddrFlag,
    VringState,
    pack_message,
    pack_region_table,
    pack_single_region,
)
from support.driver import DriverQueue, GuestRam
from support.link import PATIENCE_SECONDS, FrontendError, Link, read_exactly, ready

QEMU_PROTOCOL_FEATURES = ProtocolFeature(0x6FFFFF)
"""What QEMU 11.1.3 accepts of whatever is offered."""

_FEATURES_OK = 8


class CrashedError(FrontendError):
    """The back-end did what kills QEMU."""


class Frontend(Link):
    """One vhost-user session, over a connected socket that it owns.

    Attributes:
        features_offered: What GET_FEATURES said at the handshake.
        queue_num: What GET_QUEUE_NUM said, 0 without MQ.
        mem_slots: What GET_MAX_MEM_SLOTS said, 8 without CONFIGURE_MEM_SLOTS.
        started: Whether the device runs, as QEMU sees it.
        bases: For each ring, where it stopped last.
        config_changes: How many times CONFIG_CHANGE came.
        cancelled: How many requests unknown to QEMU came on the back-end's channel.
        reading: Set while QEMU has begun to read a message on the back-end's channel.
        crash: What would have killed QEMU, if anything did.
        lock: QEMU's global lock.
    """

    def __init__(self, sock: socket.socket, *, num_vqs: int = 5, config_size: int = 16) -> None:
        super().__init__(sock)
        self._num_vqs = num_vqs
        self._config_size = config_size
        self._memory: dict[MemoryRegion, int] = {}
        self._queues: dict[int, DriverQueue] = {}
        self._kicks: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._channel: socket.socket | None = None
        self._channel_task: asyncio.Task[None] | None = None
        self._features = 0
        self.features_offered = 0
        self.queue_num = 0
        self.mem_slots = 8
        self.started = False
        self.bases: dict[int, int] = {}
        self.config_changes = 0
        self.crash: CrashedError | None = None
        self._news = asyncio.Event()
        self.reading = asyncio.Event()
        self.cancelled = 0
        self.lock = asyncio.Lock()

    @classmethod
    async def connect(cls, path: Path | str, *, num_vqs: int = 5, config_size: int = 16) -> Self:
        """Connect to a back-end that listens at `path`."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, num_vqs=num_vqs, config_size=config_size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()
        if error is None and self.crash is not None:
            raise self.crash

    async def close(self) -> None:
        """Hang up and close every descriptor, without any farewell, as a killed QEMU does."""
        await self._close_channel()
        self.socket.close()
        self._forget_memory()
        for fd in (*self._kicks.values(), *self._calls.values()):
            os.close(fd)
        self._kicks, self._calls = {}, {}

    def _forget_memory(self) -> None:
        for fd in self._memory.values():
            os.close(fd)
        self._memory = {}

    # The device's life

    async def handshake(self, accept: ProtocolFeature = QEMU_PROTOCOL_FEATURES) -> None:
        """Do what QEMU does when the device is plugged in.

        May be repeated on the same connection, as device_add does after device_del. All of the
        guest's memory is then announced once more, though none of it was taken back.
        """
        async with self.lock:
            self._forget_memory()
            self.features_offered = await self.ask_u64(Request.GET_FEATURES)
            offered = await self.ask_u64(Request.GET_PROTOCOL_FEATURES)
            self.protocol_features = ProtocolFeature(offered) & accept
            await self.post(
                Request.SET_PROTOCOL_FEATURES, U64Payload(self.protocol_features).pack()
            )
            if self.protocol_features & ProtocolFeature.MQ:
                self.queue_num = await self.ask_u64(Request.GET_QUEUE_NUM)
            if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
                self.mem_slots = await self.ask_u64(Request.GET_MAX_MEM_SLOTS)
            if self.protocol_features & ProtocolFeature.BACKEND_REQ:
                await self._open_channel()
            await self.post(Request.SET_OWNER)
            self.features_offered = await self.ask_u64(Request.GET_FEATURES)
            for index in range(self._num_vqs):
                await self._send_fresh_eventfd(Request.SET_VRING_CALL, index)
                await self._send_fresh_eventfd(Request.SET_VRING_ERR, index)

    async def start(
        self,
        ram: GuestRam,
        queues: Mapping[int, DriverQueue],
        features: int,
        *,
        bases: Mapping[int, int] | None = None,
    ) -> None:
        """Do what QEMU does at DRIVER_OK or `cont`.

        A driver that begins anew starts its rings at 0; to resume one that was merely paused, give
        what `stop` returned as `bases`.
        """
        async with self.lock:
            self._queues, self._features = dict(queues), features
            await self.post(Request.SET_FEATURES, U64Payload(features | F_PROTOCOL_FEATURES).pack())
            if self.protocol_features & ProtocolFeature.STATUS:
                status = await self.ask_u64(Request.GET_STATUS)
                await self.post(Request.SET_STATUS, U64Payload(status | _FEATURES_OK).pack())
            await self._share_memory(ram)
            for index, queue in queues.items():
                await self._start_ring(index, queue, (bases or {}).get(index, queue.start_index))
            await self._enable_rings(True)
            for index in range(self._num_vqs):
                if index in self._calls:
                    await self._send_ring_fd(Request.SET_VRING_CALL, index, self._calls[index])
                else:
                    await self._send_fresh_eventfd(Request.SET_VRING_CALL, index)
            self.started = True
            for index in queues:
                self.kick(index)

    async def stop(self) -> dict[int, int]:
        """Do what QEMU does for `stop`, a reset, or unplugging; return where each ring stopped."""
        async with self.lock:
            self.started = False
            await self._enable_rings(False)
            for index in self._queues:
                answer = await self.ask(Request.GET_VRING_BASE, VringState(index, 0).pack())
                self.bases[index] = VringState.unpack(answer).num
            for fd in (*self._kicks.values(), *self._calls.values()):
                os.close(fd)
            self._kicks, self._calls, self._queues = {}, {}, {}
            return dict(self.bases)

    async def _start_ring(self, index: int, queue: DriverQueue, base: int) -> None:
        await self.post(Request.SET_VRING_NUM, VringState(index, queue.size).pack())
        await self.post(Request.SET_VRING_BASE, VringState(index, base).pack())
        await self.post(Request.SET_VRING_ADDR, self._addresses(index, queue).pack())
        self._kicks[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._calls[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        await self._send_ring_fd(Request.SET_VRING_KICK, index, self._kicks[index])
        await self._send_ring_fd(Request.SET_VRING_CALL, index, self._calls[index])

    def _addresses(
        self, index: int, queue: DriverQueue, flags: VringAddrFlag = VringAddrFlag.NONE
    ) -> VringAddress:
        areas = (queue.descriptors, queue.used, queue.avail)
        if not self.protocol_features & ProtocolFeature.GPA_ADDRESSES:
            to_user = queue.ram.user_address
            areas = (to_user(areas[0]), to_user(areas[1]), to_user(areas[2]))
        return VringAddress(index, flags, *areas)

    async def _enable_rings(self, enabled: bool) -> None:
        for index in range(self._num_vqs):
            await self.tell(Request.SET_VRING_ENABLE, VringState(index, int(enabled)).pack())
            if not self.protocol_features & ProtocolFeature.REPLY_ACK:
                await self.ask_u64(Request.GET_FEATURES)

    async def _send_ring_fd(self, request: Request, index: int, fd: int | None) -> None:
        value = index if fd is not None else index | RING_NO_FD
        await self.tell(request, U64Payload(value).pack(), () if fd is None else (fd,))

    async def _send_fresh_eventfd(self, request: Request, index: int) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            await self._send_ring_fd(request, index, fd)
        finally:
            os.close(fd)

    # Memory

    async def share_memory(self, ram: GuestRam) -> None:
        """Announce what `ram` consists of by now, as QEMU does after a hot-plug or an unplug."""
        async with self.lock:
            await self._share_memory(ram)

    async def _share_memory(self, ram: GuestRam) -> None:
        wanted = {self._announced(item.region): item.fd for item in ram.regions}
        if wanted.keys() == self._memory.keys():
            return
        if len(wanted) > self.mem_slots:
            raise FrontendError(f"{len(wanted)} regions, but {self.mem_slots} slots")
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            await self._update_slots(wanted)
        else:
            table = pack_region_table(tuple(wanted))
            await self.tell(Request.SET_MEM_TABLE, table, tuple(wanted.values()))
        self._forget_memory()
        self._memory = {region: os.dup(fd) for region, fd in wanted.items()}

    async def _update_slots(self, wanted: Mapping[MemoryRegion, int]) -> None:
        for region in self._memory.keys() - wanted.keys():
            await self.tell(Request.REM_MEM_REG, pack_single_region(region))
        for region, fd in wanted.items():
            if region not in self._memory:
                await self.tell(Request.ADD_MEM_REG, pack_single_region(region), (fd,))

    def _announced(self, region: MemoryRegion) -> MemoryRegion:
        if not self.protocol_features & ProtocolFeature.GPA_ADDRESSES:
            return region
        at = region.guest_address
        return MemoryRegion(at, region.size, at, region.mmap_offset)

    async def log_dirty_pages(self, enabled: bool) -> None:
        """Do what QMP's `calc-dirty-rate mode=dirty-bitmap` causes, without LOG_SHMFD."""
        async with self.lock:
            log = LogDescription(1 << 16, 0) if enabled else LogDescription(0, 0)
            await self.post(Request.SET_LOG_BASE, log.pack())
            extra = F_LOG_ALL if enabled else 0
            features = self._features | F_PROTOCOL_FEATURES | extra
            await self.tell(Request.SET_FEATURES, U64Payload(features).pack())
            flags = VringAddrFlag.LOG if enabled else VringAddrFlag.NONE
            for index, queue in self._queues.items():
                addresses = self._addresses(index, queue, flags)
                await self.tell(Request.SET_VRING_ADDR, addresses.pack())

    # The guest

    async def read_config(self) -> bytes:
        """Return the config space, as a guest's CPU reads it: holding the lock all the while."""
        async with self.lock:
            access = ConfigAccess(0, self._config_size)
            answer = await self.ask(Request.GET_CONFIG, access.pack() + bytes(self._config_size))
            if len(answer) != ConfigAccess.SIZE + self._config_size:
                raise FrontendError(f"{len(answer)} bytes of config space")
            return answer[ConfigAccess.SIZE :]

    async def write_config(self, config: bytes, flags: ConfigFlag = ConfigFlag.NONE) -> None:
        """Pass on a guest's write: the whole config space, stale fields and all."""
        async with self.lock:
            access = ConfigAccess(0, len(config), flags)
            await self.tell(Request.SET_CONFIG, access.pack() + config)

    def kick(self, index: int) -> None:
        """Notify the device of new buffers in a started ring."""
        os.eventfd_write(self._kicks[index], 1)

    def take_calls(self, index: int) -> int:
        """Return how many interrupts a started ring has raised since the last look."""
        try:
            return os.eventfd_read(self._calls[index])
        except BlockingIOError:
            return 0

    async def called(self, index: int) -> int:
        """Wait until a started ring has raised an interrupt, and return how many."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (count := self.take_calls(index)):
                await ready(loop.add_reader, loop.remove_reader, self._calls[index])
        return count

    # The back-end's channel

    async def _open_channel(self) -> None:
        await self._close_channel()
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            await self.tell(Request.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),))
        self._channel_task = asyncio.create_task(self._serve_channel(self._channel))

    async def _close_channel(self) -> None:
        if self._channel_task is not None:
            self._channel_task.cancel()
            with suppress(asyncio.CancelledError, FrontendError):
                await self._channel_task
            self._channel_task = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def _serve_channel(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await ready(loop.add_reader, loop.remove_reader, channel.fileno())
            async with self.lock:
                if not (first := await loop.sock_recv(channel, 1)):
                    return  # QEMU puts up with that
                self.reading.set()
                header = Header.unpack(first + await read_exactly(channel, Header.SIZE - 1))
                status = await self._serve_request(channel, header)
                self.reading.clear()
                if header.need_reply:
                    answer = pack_message(header.request, U64Payload(status).pack(), REPLY_FLAGS)
                    await loop.sock_sendall(channel, answer)

    async def _serve_request(self, channel: socket.socket, header: Header) -> int:
        await read_exactly(channel, header.size)
        if header.request != BackendRequest.CONFIG_CHANGE:
            self.cancelled += 1
            return 1
        if not self.started:
            self.crash = CrashedError("CONFIG_CHANGE while the device is stopped")
        self.config_changes += 1
        self._news.set()
        return 0

    async def config_changed(self) -> None:
        """Wait for a CONFIG_CHANGE that came since the last return from here.

        Raises CrashedError if it came at a moment that kills QEMU.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._news.wait()
        self._news.clear()
        if self.crash is not None:
            raise self.crash

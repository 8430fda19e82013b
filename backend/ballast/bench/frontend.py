"""A scripted vhost-user front-end: the driver's side of an inflate and a deflate ring.

It does what QEMU and a guest's driver do, message for message as far as a device notices, but at
full speed: its PFN arrays are ready, and any number of buffers is on the way. It blocks, so a
benchmark runs it in a thread of its own.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ballast.queue.split import full_barrier
from ballast_protocol.errors import PeerError, TimedOutError
from ballast_protocol.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    ConfigAccess,
    Header,
    HeaderFlag,
    MemoryRegion,
    ProtocolFeature,
    Request,
    U64Payload,
    VringAddress,
    VringAddrFlag,
    VringState,
    pack_single_region,
)
from ballast_protocol.virtio.balloon import BalloonConfig
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.ring import (
    DESCRIPTOR_SIZE,
    avail_event_offset,
    need_event,
    used_event_offset,
)

QUEUE_SIZE = 128
ARRAY_BYTES = 1024
"""Linux' arrays have 256 entries."""

FIRST_PFN = 512
"""Below are the rings and the arrays: 2 MiB of the memory that are never given up."""

USER_BASE = 0x7F00_0000_0000
FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | F_PROTOCOL_FEATURES
PROTOCOL_FEATURES = (
    ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
WITH_REPLY = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
PATIENCE_SECONDS = 60.0
_AREA_BYTES = 0x80000
"""What each ring and its arrays take."""

_DESCRIPTOR = struct.Struct("<QIHH")
"""`ring.Descriptor` without the typed object: the driver must not be what is measured."""

_AVAIL, _USED, _ARRAYS = 0x1000, 0x2000, 0x4000


class Memory:
    """A guest's RAM: a memfd that the back-end shares, populated when asked to."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = os.memfd_create("bench-guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size_bytes)
        self.mapping = mmap.mmap(self.fd, size_bytes)

    @property
    def last_pfn(self) -> int:
        """The page behind the last."""
        return self.size_bytes // mmap.PAGESIZE

    @property
    def allocated_bytes(self) -> int:
        """How much of it the host holds."""
        return os.fstat(self.fd).st_blocks * 512

    def populate(self) -> None:
        """Have the host hold every page, as after a guest has written to it."""
        os.posix_fallocate(self.fd, 0, self.size_bytes)

    def close(self) -> None:
        """Give it all back."""
        self.mapping.close()
        os.close(self.fd)


class Ring:
    """The driver's side of one split ring whose buffers are PFN arrays; the back-end is started."""

    def __init__(self, memory: Memory, index: int) -> None:
        base = index * _AREA_BYTES
        self.index = index
        self.addresses = (base, base + _AVAIL, base + _USED)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_CLOEXEC)
        # `select` knows no descriptor from 1024 on, and there are benchmarks with hundreds of VMs.
        self._poll = select.poll()
        self._poll.register(self.call, select.POLLIN)
        self._bytes = memory.mapping
        self._arrays = base + _ARRAYS
        self._view = memoryview(memory.mapping)
        words = self._view.cast("H")
        self._words = words
        self._avail, self._used = (base + _AVAIL) // 2, (base + _USED) // 2
        self._used_event = self._avail + used_event_offset(QUEUE_SIZE) // 2
        self._avail_event = self._used + avail_event_offset(QUEUE_SIZE) // 2
        self._offered = 0
        for slot in range(QUEUE_SIZE):
            words[self._avail + 2 + slot] = slot

    @property
    def in_flight(self) -> int:
        """How many buffers the device has."""
        return (self._offered - self.returned()) & 0xFFFF

    def returned(self) -> int:
        """How many buffers have come back, modulo 2^16."""
        return self._words[self._used + 1]

    def offer(self, arrays: Sequence[bytes]) -> None:
        """Put buffers into the ring and notify the device, if it wants to be."""
        old = self._offered
        for data in arrays:
            slot = self._offered % QUEUE_SIZE
            at = self._arrays + slot * ARRAY_BYTES
            self._bytes[at : at + len(data)] = data
            where = self.addresses[0] + slot * DESCRIPTOR_SIZE
            _DESCRIPTOR.pack_into(self._bytes, where, at, len(data), 0, 0)
            self._offered = (self._offered + 1) & 0xFFFF
        self._words[self._avail + 1] = self._offered
        full_barrier()
        if need_event(self._words[self._avail_event], self._offered, old):
            os.eventfd_write(self.kick, 1)

    def wait(self, count: int) -> None:
        """Wait until no more than `count` of the buffers offered are still away.

        Raises:
            TimedOutError: The device does not return them.
        """
        self._words[self._used_event] = (self._offered - count - 1) & 0xFFFF
        full_barrier()
        while self.in_flight > count:
            if not self._poll.poll(PATIENCE_SECONDS * 1000):
                raise TimedOutError(f"a buffer did not come back in {PATIENCE_SECONDS:g} s")
            os.eventfd_read(self.call)

    def play(self, arrays: Sequence[bytes], depth: int) -> None:
        """Pass arrays through the ring, with up to `depth` of them on the way.

        A driver like Linux' has a depth of 1: it waits for each buffer before the next.
        """
        step = max(depth // 2, 1)
        for start in range(0, len(arrays), step):
            self.offer(arrays[start : start + step])
            self.wait(depth - step)
        self.wait(0)

    def close(self) -> None:
        """Let go of the memory and of the descriptors."""
        self._words.release()
        self._view.release()
        os.close(self.kick)
        os.close(self.call)


class Frontend:
    """A connection to a back-end, with two rings; a context manager."""

    def __init__(self, path: Path, memory: Memory) -> None:
        """Connect and start the device.

        Raises:
            OSError: Nothing listens there.
            PeerError: The back-end does not answer as it should.
        """
        self.memory = memory
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(str(path))
        self.rings = [Ring(memory, index) for index in range(2)]
        self._handshake()
        for ring in self.rings:
            self._start(ring)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        for ring in self.rings:
            ring.close()
        self._socket.close()

    def read_config(self) -> BalloonConfig:
        """Read the config space, as a guest's CPU does through QEMU: one round trip."""
        payload = ConfigAccess(0, BalloonConfig.SIZE).pack() + bytes(BalloonConfig.SIZE)
        answer = self._ask(Request.GET_CONFIG, payload)
        return BalloonConfig.unpack(answer[ConfigAccess.SIZE :])

    def write_actual(self, pages: int) -> None:
        """Write the config space, as a guest does after each buffer."""
        config = BalloonConfig(num_pages=0, actual=pages)
        self._tell(Request.SET_CONFIG, ConfigAccess(0, BalloonConfig.SIZE).pack() + config.pack())

    def _handshake(self) -> None:
        self._ask(Request.GET_FEATURES)
        self._ask(Request.GET_PROTOCOL_FEATURES)
        self._send(Request.SET_PROTOCOL_FEATURES, U64Payload(PROTOCOL_FEATURES).pack())
        self._tell(Request.SET_OWNER)
        self._tell(Request.SET_FEATURES, U64Payload(FEATURES).pack())
        region = MemoryRegion(0, self.memory.size_bytes, USER_BASE, 0)
        self._tell(Request.ADD_MEM_REG, pack_single_region(region), [self.memory.fd])

    def _start(self, ring: Ring) -> None:
        index = ring.index
        descriptors, avail, used = (USER_BASE + each for each in ring.addresses)
        self._tell(Request.SET_VRING_NUM, VringState(index, QUEUE_SIZE).pack())
        self._tell(Request.SET_VRING_BASE, VringState(index, 0).pack())
        address = VringAddress(index, VringAddrFlag.NONE, descriptors, used, avail, 0)
        self._tell(Request.SET_VRING_ADDR, address.pack())
        self._tell(Request.SET_VRING_CALL, U64Payload(index).pack(), [ring.call])
        self._tell(Request.SET_VRING_KICK, U64Payload(index).pack(), [ring.kick])
        self._tell(Request.SET_VRING_ENABLE, VringState(index, 1).pack())

    def _tell(self, request: Request, payload: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send a request and wait until it is acknowledged."""
        answer = self._ask(request, payload, fds, WITH_REPLY)
        if U64Payload.unpack(answer).value:
            raise PeerError(f"the back-end refused {request.name}")

    def _ask(
        self,
        request: Request,
        payload: bytes = b"",
        fds: Iterable[int] = (),
        flags: HeaderFlag = HeaderFlag.VERSION,
    ) -> bytes:
        self._send(request, payload, fds, flags)
        try:
            header = Header.unpack(self._receive(Header.SIZE))
            return self._receive(header.size)
        except TimeoutError:
            raise TimedOutError(f"the back-end did not answer {request.name}") from None

    def _send(
        self,
        request: Request,
        payload: bytes = b"",
        fds: Iterable[int] = (),
        flags: HeaderFlag = HeaderFlag.VERSION,
    ) -> None:
        header = Header(request, flags, len(payload))
        socket.send_fds(self._socket, [header.pack() + payload], list(fds))

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise PeerError("the back-end hung up")
            data += part
        return data


def pack_arrays(arrays: Iterable[Sequence[int]]) -> list[bytes]:
    """Return PFN arrays as a driver writes them."""
    return [struct.pack(f"<{len(pfns)}I", *pfns) for pfns in arrays]

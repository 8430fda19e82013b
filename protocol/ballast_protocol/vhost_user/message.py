"""vhost-user on the wire: codes, flags and payload layouts.

The specification is QEMU's docs/interop/vhost-user.rst; names and numbers are its own. All numbers
travel in the host's byte order.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

from ballast_protocol.errors import MalformedError
from ballast_protocol.wire import NATIVE, U32, U64, Wire

F_LOG_ALL = 1 << 26
"""`VHOST_F_LOG_ALL`: log writes to guest memory. QEMU sets it even where it was not offered."""

F_PROTOCOL_FEATURES = 1 << 30
"""`VHOST_USER_F_PROTOCOL_FEATURES`: protocol features can be negotiated. Not a virtio feature."""

MAX_CONFIG_SIZE = 256
"""`VHOST_USER_MAX_CONFIG_SIZE`: bytes of config space that one message may carry."""

MAX_TABLE_REGIONS = 8
"""`VHOST_MEMORY_BASELINE_NREGIONS`: regions that one SET_MEM_TABLE may carry."""

MAX_FDS = 8
"""File descriptors that one message may carry."""

MAX_PAYLOAD_SIZE = 4096
"""Bytes that are read of a payload we have no use for; no message specified is larger."""

RING_INDEX_MASK = 0xFF
"""Which ring SET_VRING_KICK, CALL and ERR speak of, in their u64."""

RING_NO_FD = 1 << 8
"""In the same u64: no file descriptor comes along."""


class HeaderFlag(IntFlag):
    """The header's `flags`."""

    VERSION = 1
    """The only version there is; it takes the two lowest bits."""
    VERSION_MASK = 3
    REPLY = 1 << 2
    """Set on every answer of the back-end, and on nothing else."""
    NEED_REPLY = 1 << 3
    """An acknowledgement is wanted. It counts only once REPLY_ACK has been negotiated."""


_NEED_REPLY = int(HeaderFlag.NEED_REPLY)

REPLY_FLAGS = HeaderFlag.VERSION | HeaderFlag.REPLY
"""Exactly what QEMU wants to see in an answer; any other value makes it drop the device."""


class Request(IntEnum):
    """What the front-end may ask for (front-end message types)."""

    GET_FEATURES = 1
    """Which virtio features are offered."""
    SET_FEATURES = 2
    """Which virtio features the driver has accepted."""
    SET_OWNER = 3
    """A session begins."""
    RESET_OWNER = 4
    """Deprecated; some front-ends meant: disable all rings."""
    SET_MEM_TABLE = 5
    """All of guest memory at once, a file descriptor per region."""
    SET_LOG_BASE = 6
    """Where writes to guest memory are to be logged."""
    SET_LOG_FD = 7
    """An eventfd to signal when something was logged."""
    SET_VRING_NUM = 8
    """A ring's size."""
    SET_VRING_ADDR = 9
    """Where a ring's three areas are."""
    SET_VRING_BASE = 10
    """At which index to go on."""
    GET_VRING_BASE = 11
    """Stop the ring and say at which index."""
    SET_VRING_KICK = 12
    """The eventfd with which the driver notifies; the ring starts."""
    SET_VRING_CALL = 13
    """The eventfd with which to interrupt the driver."""
    SET_VRING_ERR = 14
    """The eventfd with which to report a broken ring."""
    GET_PROTOCOL_FEATURES = 15
    """Which protocol features are offered."""
    SET_PROTOCOL_FEATURES = 16
    """Which protocol features the front-end will use."""
    GET_QUEUE_NUM = 17
    """How many queues there can be."""
    SET_VRING_ENABLE = 18
    """Process a ring's requests, or process it without effect."""
    SEND_RARP = 19
    """Network devices: announce the guest after migration."""
    NET_SET_MTU = 20
    """Network devices: the MTU."""
    SET_BACKEND_REQ_FD = 21
    """A socket for requests of the back-end."""
    IOTLB_MSG = 22
    """A virtual IOMMU's translations."""
    SET_VRING_ENDIAN = 23
    """Legacy devices: a ring's byte order."""
    GET_CONFIG = 24
    """The guest reads the config space."""
    SET_CONFIG = 25
    """The guest has written to the config space."""
    CREATE_CRYPTO_SESSION = 26
    """Crypto devices: begin a session."""
    CLOSE_CRYPTO_SESSION = 27
    """Crypto devices: end a session."""
    POSTCOPY_ADVISE = 28
    """A postcopy migration may follow; open a userfaultfd."""
    POSTCOPY_LISTEN = 29
    """Postcopy has begun."""
    POSTCOPY_END = 30
    """Postcopy is over."""
    GET_INFLIGHT_FD = 31
    """Make a buffer that records requests in flight across a crash."""
    SET_INFLIGHT_FD = 32
    """Take that buffer back."""
    GPU_SET_SOCKET = 33
    """GPU devices: the display's socket."""
    RESET_DEVICE = 34
    """Forget all device state, keep the session."""
    VRING_KICK = 35
    """In-band notification of a ring."""
    GET_MAX_MEM_SLOTS = 36
    """How many memory regions there can be."""
    ADD_MEM_REG = 37
    """One more region of guest memory."""
    REM_MEM_REG = 38
    """A region of guest memory goes away."""
    SET_STATUS = 39
    """The virtio device status that the driver has written."""
    GET_STATUS = 40
    """The virtio device status."""
    GET_SHARED_OBJECT = 41
    """A dma-buf by its UUID."""
    SET_DEVICE_STATE_FD = 42
    """Migration: through which channel the device's state goes."""
    CHECK_DEVICE_STATE = 43
    """Migration: whether the state went through."""
    GET_SHMEM_CONFIG = 44
    """Which virtio shared memory regions the device has."""


class BackendRequest(IntEnum):
    """What the back-end may ask for on its own channel (back-end message types)."""

    IOTLB_MSG = 1
    """A translation is missing or was refused."""
    CONFIG_CHANGE = 2
    """The config space has changed; tell the guest."""
    VRING_HOST_NOTIFIER = 3
    """Map a doorbell into the guest."""
    VRING_CALL = 4
    """In-band interrupt."""
    VRING_ERR = 5
    """In-band report of a broken ring."""
    SHARED_OBJECT_ADD = 6
    """Offer a dma-buf to other back-ends."""
    SHARED_OBJECT_REMOVE = 7
    """Take the offer back."""
    SHARED_OBJECT_LOOKUP = 8
    """Find another back-end's dma-buf."""
    SHMEM_MAP = 9
    """Map a file into a shared memory region."""
    SHMEM_UNMAP = 10
    """Undo that."""


class ProtocolFeature(IntFlag):
    """What two ends of vhost-user can agree on beyond its first version."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    """Ring addresses and the regions' user addresses are guest physical addresses."""
    SHMEM = 1 << 22


class VringAddrFlag(IntFlag):
    """Flags of SET_VRING_ADDR."""

    NONE = 0
    LOG = 1
    """Log writes to the used ring."""


class ConfigFlag(IntFlag):
    """Flags of GET_CONFIG and SET_CONFIG."""

    NONE = 0
    LIVE_MIGRATION = 1
    """The access restores a migrated device, so read-only fields may be written."""


class TransferDirection(IntEnum):
    """Which way SET_DEVICE_STATE_FD is to move the state."""

    SAVE = 0
    LOAD = 1


class MigrationPhase(IntEnum):
    """When SET_DEVICE_STATE_FD is to move the state."""

    STOPPED = 0


@dataclass(frozen=True, slots=True)
class Header(Wire, byte_order=NATIVE):
    """What every message begins with. `request` stays a number: there may be ones unknown to us."""

    request: U32
    flags: Annotated[HeaderFlag, "I"]
    size: U32

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement."""
        return bool(int(self.flags) & _NEED_REPLY)


def message_bytes(header: bytes) -> int:
    """Return how long a message claims to be, header and payload, by its whole header."""
    return Header.SIZE + int.from_bytes(header[8:12], sys.byteorder)


@dataclass(frozen=True, slots=True)
class U64Payload(Wire, byte_order=NATIVE):
    """A single 64-bit integer."""

    value: U64


@dataclass(frozen=True, slots=True)
class VringState(Wire, byte_order=NATIVE):
    """A ring's index and a number that belongs to it."""

    index: U32
    num: U32


@dataclass(frozen=True, slots=True)
class VringAddress(Wire, byte_order=NATIVE):
    """Where a ring's areas are, in the front-end's address space (or the guest's: GPA_ADDRESSES).

    Attributes:
        index: The ring.
        flags: Whether writes to the used ring are logged.
        descriptor: Address of the descriptor table.
        used: Address of the used ring.
        available: Address of the available ring.
        log: Guest address under which the used ring is logged.
    """

    index: U32
    flags: Annotated[VringAddrFlag, "I"]
    descriptor: U64
    used: U64
    available: U64
    log: U64 = 0


@dataclass(frozen=True, slots=True)
class MemoryRegion(Wire, byte_order=NATIVE):
    """A piece of guest memory.

    Attributes:
        guest_address: Guest physical address.
        size: Bytes.
        user_address: Address in the front-end (or a guest address again: GPA_ADDRESSES).
        mmap_offset: Where it starts in the file whose descriptor came along.
    """

    guest_address: U64
    size: U64
    user_address: U64
    mmap_offset: U64


@dataclass(frozen=True, slots=True)
class LogDescription(Wire, byte_order=NATIVE):
    """The dirty log's place in its file."""

    size: U64
    offset: U64


@dataclass(frozen=True, slots=True)
class ConfigAccess(Wire, byte_order=NATIVE):
    """Which part of the config space is read or written; the bytes themselves follow."""

    offset: U32
    size: U32
    flags: Annotated[ConfigFlag, "I"] = ConfigFlag.NONE


@dataclass(frozen=True, slots=True)
class DeviceStateTransfer(Wire, byte_order=NATIVE):
    """What SET_DEVICE_STATE_FD is about."""

    direction: Annotated[TransferDirection, "I"]
    phase: Annotated[MigrationPhase, "I"]


SINGLE_REGION_PADDING = 8
"""Bytes before the region in ADD_MEM_REG and REM_MEM_REG."""

SINGLE_REGION_SIZE = SINGLE_REGION_PADDING + MemoryRegion.SIZE


@dataclass(frozen=True, slots=True)
class TableHead(Wire, byte_order=NATIVE):
    """What precedes the regions of SET_MEM_TABLE."""

    count: U32
    padding: U32 = 0


def pack_message(
    request: int, payload: bytes = b"", flags: HeaderFlag = HeaderFlag.VERSION
) -> bytes:
    """Return a whole message."""
    return Header(request, flags, len(payload)).pack() + payload


def pack_single_region(region: MemoryRegion) -> bytes:
    """Return the payload of ADD_MEM_REG and REM_MEM_REG."""
    return bytes(SINGLE_REGION_PADDING) + region.pack()


def unpack_single_region(payload: bytes) -> MemoryRegion:
    """Read the payload of ADD_MEM_REG and REM_MEM_REG."""
    return checked_region(MemoryRegion.unpack(payload, SINGLE_REGION_PADDING))


def pack_region_table(regions: tuple[MemoryRegion, ...]) -> bytes:
    """Return the payload of SET_MEM_TABLE."""
    return TableHead(len(regions)).pack() + b"".join(region.pack() for region in regions)


def unpack_region_table(payload: bytes) -> tuple[MemoryRegion, ...]:
    """Read the payload of SET_MEM_TABLE.

    Raises:
        MalformedError: The count is too high or does not agree with the payload's size.
    """
    count = TableHead.unpack(payload).count
    if count > MAX_TABLE_REGIONS:
        raise MalformedError(f"{count} memory regions, where {MAX_TABLE_REGIONS} are the most")
    if len(payload) != TableHead.SIZE + count * MemoryRegion.SIZE:
        raise MalformedError(f"{count} memory regions in a payload of {len(payload)} bytes")
    return tuple(
        checked_region(MemoryRegion.unpack(payload, TableHead.SIZE + i * MemoryRegion.SIZE))
        for i in range(count)
    )


def checked_region(region: MemoryRegion) -> MemoryRegion:
    """Return `region` if it lies inside all three of its address spaces.

    Raises:
        MalformedError: It is empty, or wraps around the end of one.
    """
    if not region.size:
        raise MalformedError(f"the memory region at {region.guest_address:#x} is empty")
    for start in (region.guest_address, region.user_address, region.mmap_offset):
        if start + region.size > 1 << 64:
            raise MalformedError(f"a memory region wraps around: {start:#x} + {region.size:#x}")
    return region

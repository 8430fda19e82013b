"""Every front-end message in one table: size, descriptors, what it needs, how it is answered.

The connection looks rules up here; nothing in this module knows about a connection's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from ballast_protocol.errors import MalformedError
from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.events import Event
from ballast_protocol.vhost_user.message import (
    MAX_CONFIG_SIZE,
    MAX_FDS,
    MAX_PAYLOAD_SIZE,
    MAX_TABLE_REGIONS,
    RING_INDEX_MASK,
    RING_NO_FD,
    SINGLE_REGION_SIZE,
    ConfigAccess,
    DeviceStateTransfer,
    LogDescription,
    MemoryRegion,
    ProtocolFeature,
    Request,
    TableHead,
    U64Payload,
    VringAddress,
    VringState,
    unpack_region_table,
    unpack_single_region,
)


class Reply(Enum):
    """How a request is answered."""

    ON_DEMAND = "a status, if NEED_REPLY asks for one"
    STATUS = "a status, always"
    U64 = "a number"
    VRING_STATE = "a ring's state"
    CONFIG = "a part of the config space"
    OTHER = "something that this back-end never has"


Decoder = Callable[[bytes, int], Event]
"""Makes an event of a payload and the number of descriptors that came with it."""

NOTHING = ProtocolFeature(0)


@dataclass(frozen=True)
class Rule:
    """What is known of one request.

    Attributes:
        decode: Makes the event; None if this back-end never serves the request.
        sizes: The smallest and the largest payload, in bytes.
        fds: The fewest and the most file descriptors.
        needs: The protocol feature that must have been negotiated.
        reply: How it is answered.
        accepted: The status's number when all went well.
        refused: The status's number when not.
    """

    decode: Decoder | None
    sizes: tuple[int, int] = (0, 0)
    fds: tuple[int, int] = (0, 0)
    needs: ProtocolFeature = NOTHING
    reply: Reply = Reply.ON_DEMAND
    accepted: int = 0
    refused: int = 1


SERVED_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.DEVICE_STATE
    | ProtocolFeature.GPA_ADDRESSES
)
"""What may be offered: features whose every message has a decoder here."""


def _plain(event: Event) -> Decoder:
    """Decode a request that says nothing beyond its code."""
    return lambda _payload, _fds: event


def _number(payload: bytes) -> int:
    return U64Payload.unpack(payload).value


def _set_features(payload: bytes, _fds: int) -> Event:
    return events.SetFeatures(_number(payload))


def _set_protocol_features(payload: bytes, _fds: int) -> Event:
    return events.SetProtocolFeatures(ProtocolFeature(_number(payload)))


def _set_mem_table(payload: bytes, fds: int) -> Event:
    regions = unpack_region_table(payload)
    if len(regions) != fds:
        raise MalformedError(f"{len(regions)} memory regions with {fds} file descriptors")
    return events.SetMemTable(regions)


def _add_mem_region(payload: bytes, _fds: int) -> Event:
    return events.AddMemRegion(unpack_single_region(payload))


def _rem_mem_region(payload: bytes, _fds: int) -> Event:
    return events.RemMemRegion(unpack_single_region(payload))


def _set_log_base(payload: bytes, fds: int) -> Event:
    # The specification says u64, meaning the log's address in a shared process; QEMU sends the
    # description of a file whether or not there is one.
    if len(payload) < LogDescription.SIZE:
        return events.SetLogBase(size=0, offset=_number(payload), has_fd=fds > 0)
    log = LogDescription.unpack(payload)
    return events.SetLogBase(log.size, log.offset, has_fd=fds > 0)


def _set_vring_num(payload: bytes, _fds: int) -> Event:
    state = VringState.unpack(payload)
    return events.SetVringNum(state.index, state.num)


def _set_vring_addr(payload: bytes, _fds: int) -> Event:
    at = VringAddress.unpack(payload)
    return events.SetVringAddr(at.index, at.flags, at.descriptor, at.used, at.available, at.log)


def _set_vring_base(payload: bytes, _fds: int) -> Event:
    state = VringState.unpack(payload)
    return events.SetVringBase(state.index, state.num)


def _get_vring_base(payload: bytes, _fds: int) -> Event:
    return events.GetVringBase(VringState.unpack(payload).index)


def _set_vring_enable(payload: bytes, _fds: int) -> Event:
    state = VringState.unpack(payload)
    if state.num > 1:
        raise MalformedError(f"{state.num} is neither enabled nor disabled")
    return events.SetVringEnable(state.index, enabled=bool(state.num))


_RingFdEvent = type[events.SetVringKick | events.SetVringCall | events.SetVringErr]


def _ring_fd(kind: _RingFdEvent) -> Decoder:
    def decode(payload: bytes, fds: int) -> Event:
        value = _number(payload)
        announced = 0 if value & RING_NO_FD else 1
        if fds != announced:
            raise MalformedError(f"{announced} file descriptors announced, {fds} came")
        if value & ~(RING_INDEX_MASK | RING_NO_FD):
            raise MalformedError(f"{value:#x} has bits beyond the ring's index and the no-fd flag")
        return kind(value & RING_INDEX_MASK, has_fd=fds > 0)

    return decode


@lru_cache(maxsize=16)
def _config_access(head: bytes) -> ConfigAccess:
    access = ConfigAccess.unpack(head)
    if access.offset + access.size > MAX_CONFIG_SIZE:
        raise MalformedError(f"bytes {access.offset}+{access.size} of a config space")
    return access


@lru_cache(maxsize=16)
def _get_config(payload: bytes, _fds: int) -> Event:
    # QEMU sends as many bytes as it wants back; others send the fixed part alone.
    access = _config_access(payload[: ConfigAccess.SIZE])
    if len(payload) not in (ConfigAccess.SIZE, ConfigAccess.SIZE + access.size):
        raise MalformedError(f"{access.size} bytes asked for in a payload of {len(payload)}")
    return events.GetConfig(access.offset, access.size, access.flags)


def _set_config(payload: bytes, _fds: int) -> Event:
    access = _config_access(payload[: ConfigAccess.SIZE])
    if len(payload) != ConfigAccess.SIZE + access.size:
        raise MalformedError(f"{access.size} bytes written in a payload of {len(payload)}")
    return events.SetConfig(access.offset, access.flags, payload[ConfigAccess.SIZE :])


def _set_status(payload: bytes, _fds: int) -> Event:
    return events.SetStatus(_number(payload))


def _set_device_state_fd(payload: bytes, _fds: int) -> Event:
    transfer = DeviceStateTransfer.unpack(payload)
    return events.SetDeviceStateFd(transfer.direction, transfer.phase)


_NUMBER = (U64Payload.SIZE, U64Payload.SIZE)
_STATE = (VringState.SIZE, VringState.SIZE)
_REGION = (SINGLE_REGION_SIZE, SINGLE_REGION_SIZE)
_CONFIG = (ConfigAccess.SIZE, ConfigAccess.SIZE + MAX_CONFIG_SIZE)
_ANY = (0, MAX_PAYLOAD_SIZE)
_ONE_FD = (1, 1)
_FEATURE = ProtocolFeature

UNKNOWN = Rule(None, _ANY, fds=(0, MAX_FDS))
"""For a code that no specification has: read it, drop it, refuse it if an answer is wanted."""

RULES: dict[int, Rule] = {
    Request.GET_FEATURES: Rule(_plain(events.GetFeatures()), reply=Reply.U64),
    Request.SET_FEATURES: Rule(_set_features, _NUMBER),
    Request.SET_OWNER: Rule(_plain(events.SetOwner())),
    Request.RESET_OWNER: Rule(_plain(events.ResetOwner())),
    Request.SET_MEM_TABLE: Rule(
        _set_mem_table,
        (TableHead.SIZE, TableHead.SIZE + MAX_TABLE_REGIONS * MemoryRegion.SIZE),
        fds=(0, MAX_TABLE_REGIONS),
    ),
    Request.SET_LOG_BASE: Rule(_set_log_base, (U64Payload.SIZE, LogDescription.SIZE), fds=(0, 1)),
    Request.SET_LOG_FD: Rule(_plain(events.SetLogFd()), fds=_ONE_FD),
    Request.SET_VRING_NUM: Rule(_set_vring_num, _STATE),
    Request.SET_VRING_ADDR: Rule(_set_vring_addr, (VringAddress.SIZE, VringAddress.SIZE)),
    Request.SET_VRING_BASE: Rule(_set_vring_base, _STATE),
    Request.GET_VRING_BASE: Rule(_get_vring_base, _STATE, reply=Reply.VRING_STATE),
    Request.SET_VRING_KICK: Rule(_ring_fd(events.SetVringKick), _NUMBER, fds=(0, 1)),
    Request.SET_VRING_CALL: Rule(_ring_fd(events.SetVringCall), _NUMBER, fds=(0, 1)),
    Request.SET_VRING_ERR: Rule(_ring_fd(events.SetVringErr), _NUMBER, fds=(0, 1)),
    Request.GET_PROTOCOL_FEATURES: Rule(_plain(events.GetProtocolFeatures()), reply=Reply.U64),
    Request.SET_PROTOCOL_FEATURES: Rule(_set_protocol_features, _NUMBER),
    Request.GET_QUEUE_NUM: Rule(_plain(events.GetQueueNum()), needs=_FEATURE.MQ, reply=Reply.U64),
    Request.SET_VRING_ENABLE: Rule(_set_vring_enable, _STATE),
    Request.SEND_RARP: Rule(None, _NUMBER, needs=_FEATURE.RARP),
    Request.NET_SET_MTU: Rule(None, _NUMBER, needs=_FEATURE.MTU),
    Request.SET_BACKEND_REQ_FD: Rule(
        _plain(events.SetBackendReqFd()), fds=_ONE_FD, needs=_FEATURE.BACKEND_REQ
    ),
    Request.IOTLB_MSG: Rule(None, _ANY, reply=Reply.STATUS),
    Request.SET_VRING_ENDIAN: Rule(None, _STATE, needs=_FEATURE.CROSS_ENDIAN),
    Request.GET_CONFIG: Rule(_get_config, _CONFIG, needs=_FEATURE.CONFIG, reply=Reply.CONFIG),
    Request.SET_CONFIG: Rule(_set_config, _CONFIG, needs=_FEATURE.CONFIG),
    Request.CREATE_CRYPTO_SESSION: Rule(
        None, _ANY, needs=_FEATURE.CRYPTO_SESSION, reply=Reply.OTHER
    ),
    Request.CLOSE_CRYPTO_SESSION: Rule(None, _NUMBER, needs=_FEATURE.CRYPTO_SESSION),
    # The answer to ADVISE is a userfaultfd; one without tells the front-end that there is none.
    Request.POSTCOPY_ADVISE: Rule(None, needs=_FEATURE.PAGEFAULT, reply=Reply.OTHER),
    Request.POSTCOPY_LISTEN: Rule(None, needs=_FEATURE.PAGEFAULT),
    Request.POSTCOPY_END: Rule(None, needs=_FEATURE.PAGEFAULT, reply=Reply.STATUS),
    Request.GET_INFLIGHT_FD: Rule(None, _ANY, needs=_FEATURE.INFLIGHT_SHMFD, reply=Reply.OTHER),
    Request.SET_INFLIGHT_FD: Rule(None, _ANY, fds=_ONE_FD, needs=_FEATURE.INFLIGHT_SHMFD),
    Request.GPU_SET_SOCKET: Rule(None, fds=_ONE_FD),
    Request.RESET_DEVICE: Rule(_plain(events.ResetDevice()), needs=_FEATURE.RESET_DEVICE),
    Request.VRING_KICK: Rule(None, _STATE, needs=_FEATURE.INBAND_NOTIFICATIONS),
    Request.GET_MAX_MEM_SLOTS: Rule(
        _plain(events.GetMaxMemSlots()), needs=_FEATURE.CONFIGURE_MEM_SLOTS, reply=Reply.U64
    ),
    Request.ADD_MEM_REG: Rule(
        _add_mem_region, _REGION, fds=_ONE_FD, needs=_FEATURE.CONFIGURE_MEM_SLOTS
    ),
    Request.REM_MEM_REG: Rule(
        _rem_mem_region, _REGION, fds=(0, 1), needs=_FEATURE.CONFIGURE_MEM_SLOTS
    ),
    Request.SET_STATUS: Rule(_set_status, _NUMBER, needs=_FEATURE.STATUS),
    Request.GET_STATUS: Rule(_plain(events.GetStatus()), needs=_FEATURE.STATUS, reply=Reply.U64),
    Request.GET_SHARED_OBJECT: Rule(None, _ANY, needs=_FEATURE.SHARED_OBJECT, reply=Reply.OTHER),
    # Bit 8 of this status: no descriptor comes back, use the one that was sent.
    Request.SET_DEVICE_STATE_FD: Rule(
        _set_device_state_fd,
        (DeviceStateTransfer.SIZE, DeviceStateTransfer.SIZE),
        fds=_ONE_FD,
        needs=_FEATURE.DEVICE_STATE,
        reply=Reply.STATUS,
        accepted=RING_NO_FD,
        refused=RING_NO_FD | 1,
    ),
    Request.CHECK_DEVICE_STATE: Rule(
        _plain(events.CheckDeviceState()), needs=_FEATURE.DEVICE_STATE, reply=Reply.STATUS
    ),
    Request.GET_SHMEM_CONFIG: Rule(None, needs=_FEATURE.SHMEM, reply=Reply.OTHER),
}


def name_of(request: int) -> str:
    """Return how to call a request in a message to people."""
    return Request(request).name if request in RULES else f"request {request}"

"""Every front-end message by example, and the steps of a shell around a `BackendConnection`."""

from __future__ import annotations

from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.connection import BackendConnection
from ballast_protocol.vhost_user.events import Event
from ballast_protocol.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    REPLY_FLAGS,
    ConfigAccess,
    ConfigFlag,
    DeviceStateTransfer,
    Header,
    HeaderFlag,
    LogDescription,
    MemoryRegion,
    MigrationPhase,
    ProtocolFeature,
    Request,
    TransferDirection,
    U64Payload,
    VringAddress,
    VringAddrFlag,
    VringState,
    pack_message,
    pack_region_table,
    pack_single_region,
)
from ballast_protocol.vhost_user.rules import SERVED_PROTOCOL_FEATURES

FEATURES = 1 << 32 | 1 << 29 | 0b100010
CONFIG_SIZE = 16
RINGS = 5
SLOTS = 32
ALL = SERVED_PROTOCOL_FEATURES
REGION = MemoryRegion(0x100000, 0x200000, 0x7F0000100000, 0x1000)
OTHER_REGION = MemoryRegion(1 << 32, 0x200000, 0x7F0100000000, 0)
NEED_REPLY = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY


def fresh(protocol_features: ProtocolFeature = ALL, features: int = FEATURES) -> BackendConnection:
    return BackendConnection(
        features=features,
        protocol_features=protocol_features,
        queue_count=RINGS,
        max_mem_slots=SLOTS,
        config_size=CONFIG_SIZE,
    )


def feed(
    connection: BackendConnection,
    request: int,
    payload: bytes = b"",
    fds: int = 0,
    flags: HeaderFlag = HeaderFlag.VERSION,
) -> Event:
    """Hand over one message as the shell does, header and payload apart."""
    assert connection.bytes_wanted == Header.SIZE
    event = connection.receive(Header(request, flags, len(payload)).pack(), fds)
    if payload:
        assert event is None
        assert connection.mid_message
        assert connection.bytes_wanted == len(payload)
        event = connection.receive(payload)
    assert event is not None
    assert connection.pending == request
    return event


def finish(connection: BackendConnection, event: Event) -> bytes:
    """Answer any event somehow, as a back-end in good health would."""
    answer = connection.auto_reply(event)
    if answer is not None:
        return answer
    match event:
        case events.GetVringBase(index):
            return connection.reply_vring_state(index, 77)
        case events.GetConfig():
            return connection.reply_config(bytes(range(CONFIG_SIZE)))
        case events.GetStatus():
            return connection.reply_u64(0xF)
        case _:
            return connection.ack()


def negotiated(protocol_features: ProtocolFeature = ALL) -> BackendConnection:
    """Return a connection on which these protocol features are in force."""
    connection = fresh()
    payload = U64Payload(protocol_features).pack()
    finish(connection, feed(connection, Request.SET_PROTOCOL_FEATURES, payload))
    return connection


def reply(request: int, payload: bytes) -> bytes:
    return pack_message(request, payload, REPLY_FLAGS)


def status(request: int, value: int) -> bytes:
    return reply(request, U64Payload(value).pack())


def u64(value: int) -> bytes:
    return U64Payload(value).pack()


def state(index: int, number: int = 0) -> bytes:
    return VringState(index, number).pack()


CONFIG_BYTES = bytes(range(16))
ADDRESSES = VringAddress(1, VringAddrFlag.LOG, 0x1000, 0x3000, 0x2000, 0x9000)

# Each request that is served: payload, number of descriptors, the event it makes.
SERVED: list[tuple[Request, bytes, int, Event]] = [
    (Request.GET_FEATURES, b"", 0, events.GetFeatures()),
    (
        Request.SET_FEATURES,
        u64(FEATURES | F_PROTOCOL_FEATURES),
        0,
        events.SetFeatures(FEATURES | F_PROTOCOL_FEATURES),
    ),
    (Request.SET_OWNER, b"", 0, events.SetOwner()),
    (Request.RESET_OWNER, b"", 0, events.ResetOwner()),
    (
        Request.SET_MEM_TABLE,
        pack_region_table((REGION, OTHER_REGION)),
        2,
        events.SetMemTable((REGION, OTHER_REGION)),
    ),
    (Request.SET_MEM_TABLE, pack_region_table(()), 0, events.SetMemTable(())),
    (
        Request.SET_LOG_BASE,
        LogDescription(0x1000, 0x40).pack(),
        1,
        events.SetLogBase(0x1000, 0x40, has_fd=True),
    ),
    (Request.SET_LOG_FD, b"", 1, events.SetLogFd()),
    (Request.SET_VRING_NUM, state(1, 128), 0, events.SetVringNum(1, 128)),
    (
        Request.SET_VRING_ADDR,
        ADDRESSES.pack(),
        0,
        events.SetVringAddr(1, VringAddrFlag.LOG, 0x1000, 0x3000, 0x2000, 0x9000),
    ),
    (Request.SET_VRING_BASE, state(4, 0x80008000), 0, events.SetVringBase(4, 0x80008000)),
    (Request.GET_VRING_BASE, state(4), 0, events.GetVringBase(4)),
    (Request.SET_VRING_KICK, u64(3), 1, events.SetVringKick(3, has_fd=True)),
    (Request.SET_VRING_KICK, u64(0x103), 0, events.SetVringKick(3, has_fd=False)),
    (Request.SET_VRING_CALL, u64(0), 1, events.SetVringCall(0, has_fd=True)),
    (Request.SET_VRING_CALL, u64(0x100), 0, events.SetVringCall(0, has_fd=False)),
    (Request.SET_VRING_ERR, u64(4), 1, events.SetVringErr(4, has_fd=True)),
    (Request.SET_VRING_ERR, u64(0x104), 0, events.SetVringErr(4, has_fd=False)),
    (Request.GET_PROTOCOL_FEATURES, b"", 0, events.GetProtocolFeatures()),
    (Request.SET_PROTOCOL_FEATURES, u64(ALL), 0, events.SetProtocolFeatures(ALL)),
    (Request.GET_QUEUE_NUM, b"", 0, events.GetQueueNum()),
    (Request.SET_VRING_ENABLE, state(2, 1), 0, events.SetVringEnable(2, enabled=True)),
    (Request.SET_VRING_ENABLE, state(2, 0), 0, events.SetVringEnable(2, enabled=False)),
    (Request.SET_BACKEND_REQ_FD, b"", 1, events.SetBackendReqFd()),
    (
        Request.GET_CONFIG,
        ConfigAccess(0, 16).pack() + bytes(16),
        0,
        events.GetConfig(0, 16, ConfigFlag.NONE),
    ),
    (Request.GET_CONFIG, ConfigAccess(4, 8).pack(), 0, events.GetConfig(4, 8, ConfigFlag.NONE)),
    (
        Request.SET_CONFIG,
        ConfigAccess(0, 16, ConfigFlag.LIVE_MIGRATION).pack() + CONFIG_BYTES,
        0,
        events.SetConfig(0, ConfigFlag.LIVE_MIGRATION, CONFIG_BYTES),
    ),
    (Request.RESET_DEVICE, b"", 0, events.ResetDevice()),
    (Request.GET_MAX_MEM_SLOTS, b"", 0, events.GetMaxMemSlots()),
    (Request.ADD_MEM_REG, pack_single_region(REGION), 1, events.AddMemRegion(REGION)),
    (Request.REM_MEM_REG, pack_single_region(REGION), 0, events.RemMemRegion(REGION)),
    (Request.REM_MEM_REG, pack_single_region(REGION), 1, events.RemMemRegion(REGION)),
    (Request.SET_STATUS, u64(8), 0, events.SetStatus(8)),
    (Request.GET_STATUS, b"", 0, events.GetStatus()),
    (
        Request.SET_DEVICE_STATE_FD,
        DeviceStateTransfer(TransferDirection.LOAD, MigrationPhase.STOPPED).pack(),
        1,
        events.SetDeviceStateFd(TransferDirection.LOAD, MigrationPhase.STOPPED),
    ),
    (Request.CHECK_DEVICE_STATE, b"", 0, events.CheckDeviceState()),
]

# Each request that is known and never served: payload, descriptors, the refusal's payload.
REFUSED: list[tuple[Request, bytes, int, bytes | None]] = [
    (Request.SEND_RARP, bytes(8), 0, None),
    (Request.NET_SET_MTU, bytes(8), 0, None),
    (Request.IOTLB_MSG, bytes(32), 0, u64(1)),
    (Request.SET_VRING_ENDIAN, bytes(8), 0, None),
    (Request.CREATE_CRYPTO_SESSION, bytes(700), 0, b""),
    (Request.CLOSE_CRYPTO_SESSION, bytes(8), 0, None),
    (Request.POSTCOPY_ADVISE, b"", 0, b""),
    (Request.POSTCOPY_LISTEN, b"", 0, None),
    (Request.POSTCOPY_END, b"", 0, u64(1)),
    (Request.GET_INFLIGHT_FD, bytes(24), 0, b""),
    (Request.SET_INFLIGHT_FD, bytes(24), 1, None),
    (Request.GPU_SET_SOCKET, b"", 1, None),
    (Request.VRING_KICK, bytes(8), 0, None),
    (Request.GET_SHARED_OBJECT, bytes(16), 0, b""),
    (Request.GET_SHMEM_CONFIG, b"", 0, b""),
]


def request_name(item: object) -> str | None:
    return item.name if isinstance(item, Request) else None

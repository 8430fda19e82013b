"""Every message of a vfio-user client by example, and the steps of a shell around the server."""

from __future__ import annotations

import errno

from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import (
    Command,
    DmaMapFlag,
    DmaUnmapFlag,
    FeatureFlag,
    HeaderFlag,
    IrqFlag,
    IrqSetFlag,
    RegionFlag,
)
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.device import Area, Device, IoEventFd, Irq, Region, SparseMmap
from ballast_protocol.vfio_user.events import Event, IrqAction, Request
from ballast_protocol.vfio_user.message import (
    DeviceInfo,
    DmaAccess,
    DmaMapping,
    DmaUnmapping,
    FeatureHead,
    Header,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    WriteCount,
    pack_message,
)

QEMU_VERSION = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
    b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, '
    b'"pgsize": 4096}, "write_multiple": true}}\0'
)
"""What QEMU 11.1.3 says of itself."""

RIGHTS = DmaMapFlag.READ | DmaMapFlag.WRITE
INTX, MSIX, ERR = 0, 2, 3
DEVICE = Device(
    regions=(
        Region(
            0x4000,
            RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP,
            (SparseMmap((Area(0x2000, 0x1000),)),),
            io_event_fds=(IoEventFd(0x3000, 2, 0), IoEventFd(0x3004, 2, 1)),
        ),
        Region(0x1000, RegionFlag.READ),
        *[Region(0)] * 5,
        Region(256),
        Region(0x1000, RegionFlag.WRITE | RegionFlag.MMAP, file_offset=0x8000),
    ),
    irqs=(
        Irq(1, IrqFlag.EVENTFD | IrqFlag.MASKABLE | IrqFlag.AUTOMASKED),
        Irq(0),
        Irq(6, IrqFlag.EVENTFD | IrqFlag.NORESIZE),
        Irq(0, IrqFlag.NONE),
        Irq(1, IrqFlag.NONE),
    ),
)


def hello(minor: int = 0, capabilities: bytes = QEMU_VERSION) -> bytes:
    return bytes([0, 0, minor, 0]) + capabilities


def receive(
    connection: ServerConnection,
    command: int,
    payload: bytes = b"",
    fds: int = 0,
    flags: int = 0,
    message_id: int = 7,
) -> events.Completion | Request:
    """Hand over one message as the shell does, header and payload apart."""
    assert connection.bytes_wanted == Header.SIZE
    size = Header.SIZE + len(payload)
    found = connection.receive(Header(message_id, command, size, HeaderFlag(flags)).pack(), fds)
    if payload:
        assert found is None
        assert connection.mid_message
        assert connection.bytes_wanted == len(payload)
        found = connection.receive(payload)
    assert found is not None
    assert not connection.mid_message
    return found


def feed(
    connection: ServerConnection,
    command: int,
    payload: bytes = b"",
    fds: int = 0,
    flags: int = 0,
    message_id: int = 7,
) -> Request:
    """Hand over one command."""
    found = receive(connection, command, payload, fds, flags, message_id)
    assert isinstance(found, Request)
    assert (found.command, found.message_id) == (command, message_id)
    return found


def finish(connection: ServerConnection, request: Request) -> bytes:
    """Answer any request somehow, as a device in good health would."""
    answer = connection.auto_reply(request)
    if answer is not None:
        return answer
    match request.event:
        case events.RegionRead(count=count):
            return connection.reply_data(request, bytes(count))
        case events.GetRegionInfo() | events.GetRegionIoFds():
            return connection.describe(request).payload
        case _:
            return connection.ack(request)


def negotiated(
    minor: int = 0, capabilities: bytes = QEMU_VERSION, device: Device = DEVICE
) -> ServerConnection:
    connection = ServerConnection(device)
    finish(connection, feed(connection, Command.VERSION, hello(minor, capabilities)))
    return connection


def reply(command: int, payload: bytes = b"", message_id: int = 7) -> bytes:
    return pack_message(message_id, command, payload, HeaderFlag.REPLY)


def refusal(command: int, error: int, message_id: int = 7) -> bytes:
    return pack_message(message_id, command, b"", HeaderFlag.REPLY | HeaderFlag.ERROR, error)


def dma_map(
    address: int, size: int, offset: int = 0, flags: int = RIGHTS, argsz: int = DmaMapping.SIZE
) -> bytes:
    return DmaMapping(argsz, DmaMapFlag(flags), offset, address, size).pack()


def dma_unmap(address: int, size: int, flags: int = 0, argsz: int = DmaUnmapping.SIZE) -> bytes:
    return DmaUnmapping(argsz, DmaUnmapFlag(flags), address, size).pack()


def region_info(index: int, argsz: int = RegionInfo.SIZE) -> bytes:
    return RegionInfo(argsz, RegionFlag.NONE, index).pack()


def irq_info(index: int, argsz: int = IrqInfo.SIZE) -> bytes:
    return IrqInfo(argsz, IrqFlag.NONE, index).pack()


def set_irqs(flags: int, index: int, start: int, count: int, data: bytes = b"") -> bytes:
    size = IrqSet.SIZE + len(data)
    return IrqSet(size, IrqSetFlag(flags), index, start, count).pack() + data


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return RegionAccess(offset, region, count).pack() + data


def multi(*writes: tuple[int, int, bytes]) -> bytes:
    packed = [access(region, at, len(data), data.ljust(8, b"\0")) for region, at, data in writes]
    return WriteCount(len(writes)).pack() + b"".join(packed)


def feature(flags: int, data: bytes = b"") -> bytes:
    return FeatureHead(FeatureHead.SIZE, FeatureFlag(flags)).pack() + data


TOP = (1 << 64) - 0x1000
TRIGGER = IrqAction.TRIGGER

# Each command that is served: payload, number of descriptors, the event it makes.
SERVED: list[tuple[Command, bytes, int, Event]] = [
    (
        Command.DMA_MAP,
        dma_map(0xC0000, 0x7FF40000, 0xC0000),
        1,
        events.DmaMap(0xC0000, 0x7FF40000, 0xC0000, RIGHTS, has_fd=True),
    ),
    (
        Command.DMA_MAP,
        dma_map(TOP, 0x1000, flags=1),
        0,
        events.DmaMap(TOP, 0x1000, 0, DmaMapFlag.READ, has_fd=False),
    ),
    (Command.DMA_UNMAP, dma_unmap(0, 0xA0000), 0, events.DmaUnmap(0, 0xA0000)),
    (Command.DMA_UNMAP, dma_unmap(0, 0, flags=2), 0, events.DmaUnmapAll()),
    (Command.DEVICE_GET_INFO, DeviceInfo(16).pack(), 0, events.GetInfo()),
    (Command.DEVICE_GET_REGION_INFO, region_info(8), 0, events.GetRegionInfo(8, 32)),
    (Command.DEVICE_GET_REGION_INFO, region_info(0, 64), 0, events.GetRegionInfo(0, 64)),
    (
        Command.DEVICE_GET_REGION_IO_FDS,
        RegionIoFds(96, 0, 0, 0).pack(),
        0,
        events.GetRegionIoFds(0, 96),
    ),
    (Command.DEVICE_GET_IRQ_INFO, irq_info(MSIX), 0, events.GetIrqInfo(MSIX)),
    # As QEMU 11.1 sends them: eventfds, "unused", disable all, end of an INTx.
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x24, MSIX, 0, 6),
        6,
        events.SetIrqEventfds(MSIX, 0, 6, TRIGGER, has_fds=True),
    ),
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x24, MSIX, 5, 1),
        0,
        events.SetIrqEventfds(MSIX, 5, 1, TRIGGER, has_fds=False),
    ),
    (Command.DEVICE_SET_IRQS, set_irqs(0x21, MSIX, 0, 0), 0, events.DisableIrqs(MSIX)),
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x11, INTX, 0, 1),
        0,
        events.ActOnIrqs(INTX, 0, 1, IrqAction.UNMASK),
    ),
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x0A, INTX, 0, 1, b"\1"),
        0,
        events.ActOnIrqs(INTX, 0, 1, IrqAction.MASK, (True,)),
    ),
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x22, MSIX, 2, 3, b"\1\0\1"),
        0,
        events.ActOnIrqs(MSIX, 2, 3, TRIGGER, (True, False, True)),
    ),
    (
        Command.DEVICE_SET_IRQS,
        set_irqs(0x14, INTX, 0, 1),
        1,
        events.SetIrqEventfds(INTX, 0, 1, IrqAction.UNMASK, has_fds=True),
    ),
    (Command.REGION_READ, access(7, 0, 256), 0, events.RegionRead(7, 0, 256)),
    (Command.REGION_READ, access(1, 0xFFC, 4), 0, events.RegionRead(1, 0xFFC, 4)),
    (
        Command.REGION_WRITE,
        access(0, 0x3000, 2, b"\2\0"),
        0,
        events.RegionWrite(0, 0x3000, b"\2\0"),
    ),
    (Command.DEVICE_RESET, b"", 0, events.DeviceReset()),
    (
        Command.REGION_WRITE_MULTI,
        multi((0, 0x3000, b"\1\0"), (7, 4, b"\6\1\0\0")),
        0,
        events.RegionWriteMulti(
            (events.RegionWrite(0, 0x3000, b"\1\0"), events.RegionWrite(7, 4, b"\6\1\0\0"))
        ),
    ),
    (Command.REGION_WRITE_MULTI, multi(), 0, events.RegionWriteMulti(())),
]

ENOTSUP, EINVAL = errno.ENOTSUP, errno.EINVAL
# Each command that is known and never served: payload, the errno of its refusal.
REFUSED: list[tuple[Command, bytes, int]] = [
    (Command.VERSION, hello(), EINVAL),
    (Command.DMA_READ, DmaAccess(0, 16).pack(), ENOTSUP),
    (Command.DMA_WRITE, DmaAccess(0, 4).pack() + bytes(4), ENOTSUP),
    (Command.DIRTY_PAGES, bytes(8), ENOTSUP),
    (Command.DEVICE_FEATURE, feature(FeatureFlag.GET | 1), ENOTSUP),
    (Command.DEVICE_FEATURE, feature(FeatureFlag.SET | 2, bytes(8)), ENOTSUP),
    (
        Command.DEVICE_FEATURE,
        feature(FeatureFlag.PROBE | FeatureFlag.GET | FeatureFlag.SET | 6),
        ENOTSUP,
    ),
    (Command.DEVICE_FEATURE, feature(FeatureFlag.GET | FeatureFlag.SET | 2), EINVAL),
    (Command.DEVICE_FEATURE, feature(1), EINVAL),
    (Command.MIG_DATA_READ, MigrationData(4096, 4088).pack(), ENOTSUP),
    (Command.MIG_DATA_WRITE, MigrationData(12, 4).pack() + bytes(4), ENOTSUP),
]


def command_name(item: object) -> str | None:
    return item.name if isinstance(item, Command) else None

"""The server's state machine: whole messages that ask for what cannot be, and DMA ranges."""

from __future__ import annotations

import errno

import pytest

from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.capabilities import Capabilities
from ballast_protocol.vfio_user.codes import Command, DeviceFlag, IrqFlag, RegionFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.device import Device, Irq, Region
from ballast_protocol.vfio_user.message import MAX_WRITES, DeviceInfo, RegionIoFds, WriteCount
from support.vfio_messages import (
    DEVICE,
    ERR,
    INTX,
    MSIX,
    QEMU_VERSION,
    access,
    dma_map,
    dma_unmap,
    feed,
    finish,
    hello,
    irq_info,
    multi,
    negotiated,
    refusal,
    region_info,
    reply,
    set_irqs,
)


def mapped() -> ServerConnection:
    """Return a connection on which one range is mapped."""
    connection = negotiated()
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0, 0xA0000)))
    return connection


@pytest.mark.parametrize(
    ("command", "payload", "fds", "error", "complaint"),
    [
        (Command.DMA_MAP, dma_map(0, 0), 0, errno.EINVAL, "empty"),
        (Command.DMA_MAP, dma_map((1 << 64) - 1, 2), 0, errno.EINVAL, "wraps"),
        (Command.DMA_MAP, dma_map(0, 2, (1 << 63) - 1), 1, errno.EINVAL, "wraps"),
        (Command.DMA_MAP, dma_map(0, 4096, flags=0), 1, errno.EINVAL, "no rights"),
        (Command.DMA_MAP, dma_map(0, 4096, flags=7), 1, errno.EINVAL, "no rights"),
        (Command.DMA_MAP, dma_map(0, 4096, argsz=31), 1, errno.EINVAL, "room for 31"),
        (Command.DMA_UNMAP, dma_unmap(0, 4096), 0, errno.ENOENT, "is mapped"),
        (Command.DMA_UNMAP, dma_unmap(0, 0), 0, errno.ENOENT, "is mapped"),
        (Command.DMA_UNMAP, dma_unmap(0, 4096, 4), 0, errno.EINVAL, "unknown flags"),
        (Command.DMA_UNMAP, dma_unmap(0, 4096, 2), 0, errno.EINVAL, "everything, but"),
        (Command.DMA_UNMAP, dma_unmap(0, 4096, 1), 0, errno.ENOTSUP, "dirty bitmap"),
        (Command.DMA_UNMAP, dma_unmap(0, 4096, 1) + bytes(16), 0, errno.ENOTSUP, "bitmap"),
        (Command.DMA_UNMAP, dma_unmap(0, 0, argsz=23), 0, errno.EINVAL, "room for 23"),
        (Command.DEVICE_GET_INFO, DeviceInfo(15).pack(), 0, errno.EINVAL, "room for 15"),
        (Command.DEVICE_GET_REGION_INFO, region_info(9), 0, errno.EINVAL, "region 9 of 9"),
        (Command.DEVICE_GET_REGION_INFO, region_info(0, 31), 0, errno.EINVAL, "room for 31"),
        (
            Command.DEVICE_GET_REGION_IO_FDS,
            RegionIoFds(16, 0, 9, 0).pack(),
            0,
            errno.EINVAL,
            "region 9 of 9",
        ),
        (
            Command.DEVICE_GET_REGION_IO_FDS,
            RegionIoFds(16, 1, 0, 0).pack(),
            0,
            errno.EINVAL,
            "not 0",
        ),
        (
            Command.DEVICE_GET_REGION_IO_FDS,
            RegionIoFds(15, 0, 0, 0).pack(),
            0,
            errno.EINVAL,
            "room",
        ),
        (Command.DEVICE_GET_IRQ_INFO, irq_info(5), 0, errno.EINVAL, "type 5 of 5"),
        (Command.DEVICE_GET_IRQ_INFO, irq_info(0, 15), 0, errno.EINVAL, "room for 15"),
        (Command.REGION_READ, access(0, 0x4000, 1), 0, errno.EINVAL, "of region 0"),
        (Command.REGION_READ, access(0, 0x3FFE, 4), 0, errno.EINVAL, "of region 0"),
        (Command.REGION_READ, access(0, (1 << 64) - 1, 2), 0, errno.EINVAL, "of region 0"),
        (Command.REGION_READ, access(0, 0, 0), 0, errno.EINVAL, "of region 0"),
        (Command.REGION_READ, access(2, 0, 1), 0, errno.EINVAL, "of region 2"),
        (Command.REGION_READ, access(9, 0, 1), 0, errno.EINVAL, "region 9 of 9"),
        (Command.REGION_READ, access(8, 0, 1), 0, errno.EPERM, "not allow READ"),
        (Command.REGION_READ, access(0, 0, (1 << 20) + 1), 0, errno.E2BIG, "at once"),
        (Command.REGION_WRITE, access(1, 0, 1, b"x"), 0, errno.EPERM, "not allow WRITE"),
        (Command.REGION_WRITE, access(0, 0, 0), 0, errno.EINVAL, "of region 0"),
        (Command.REGION_WRITE, access(7, 254, 4, bytes(4)), 0, errno.EINVAL, "region 7"),
        (Command.REGION_WRITE, access(7, 0, 5, bytes(4)), 0, errno.EINVAL, "payload of 20"),
        (
            Command.REGION_WRITE_MULTI,
            multi((0, 0, b"ok"), (7, 255, b"no")),
            0,
            errno.EINVAL,
            "region 7",
        ),
        (Command.REGION_WRITE_MULTI, multi((0, 0, b"")), 0, errno.EINVAL, "region 0"),
        (
            Command.REGION_WRITE_MULTI,
            WriteCount(1).pack() + access(0, 0, 9, bytes(8)),
            0,
            errno.EINVAL,
            "write of 9 bytes",
        ),
        (Command.REGION_WRITE_MULTI, WriteCount(2).pack(), 0, errno.EINVAL, "not 56"),
        (
            Command.REGION_WRITE_MULTI,
            WriteCount(MAX_WRITES + 1).pack(),
            0,
            errno.EINVAL,
            "are the most",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_errno(
    command: Command, payload: bytes, fds: int, error: int, complaint: str
) -> None:
    connection = negotiated()
    request = feed(connection, command, payload, fds)
    assert isinstance(request.event, events.Refused)
    assert request.event.errno == error
    assert complaint in request.event.reason
    assert connection.auto_reply(request) == refusal(command, error)
    assert len(connection.maps) == 0


@pytest.mark.parametrize(
    ("flags", "index", "start", "count", "data", "fds"),
    [
        (0x24, 5, 0, 1, b"", 1),  # no such type
        (0x24, MSIX, 6, 1, b"", 1),  # no such vector
        (0x24, MSIX, 1, 6, b"", 6),
        (0x24, MSIX, 0xFFFFFFFF, 1, b"", 1),
        (0x24, MSIX, 0, 0xFFFFFFFF, b"", 0),
        (0x24, MSIX, 0, 0, b"", 0),  # eventfds for nobody
        (0x24, MSIX, 0, 1, b"\1", 1),  # descriptors have no data
        (0x24, 4, 0, 1, b"", 1),  # cannot signal
        (0x0C, MSIX, 0, 1, b"", 1),  # cannot mask
        (0x14, MSIX, 0, 1, b"", 1),
        (0x11, MSIX, 0, 1, b"", 0),
        (0x11, INTX, 0, 2, b"", 0),
        (0x21, ERR, 0, 1, b"", 0),
        (0x21, MSIX, 1, 0, b"", 0),  # disable all, but not from the start
        (0x11, INTX, 0, 0, b"", 0),  # unmask nothing
        (0x21, 5, 0, 0, b"", 0),
        (0x22, MSIX, 0, 0, b"", 0),
        (0x22, MSIX, 0, 2, b"\1", 0),
        (0x22, MSIX, 0, 1, b"\2", 0),  # neither true nor false
        (0x22, MSIX, 0xFFFFFFFF, 1, b"\0", 0),
        (0x20, MSIX, 0, 1, b"", 0),  # no data flag, no action, two of them, unknown ones
        (0x01, MSIX, 0, 1, b"", 0),
        (0x23, MSIX, 0, 1, b"", 0),
        (0x31, INTX, 0, 1, b"", 0),
        (0x61, MSIX, 0, 1, b"", 0),
        (0x26, MSIX, 0, 1, b"", 1),
        (0, MSIX, 0, 1, b"", 0),
        (0x80000021, MSIX, 0, 1, b"", 0),
    ],
)
def test_set_irqs_that_cannot_be(
    flags: int, index: int, start: int, count: int, data: bytes, fds: int
) -> None:
    connection = negotiated()
    payload = set_irqs(flags, index, start, count, data)
    request = feed(connection, Command.DEVICE_SET_IRQS, payload, fds)
    assert isinstance(request.event, events.Refused)
    assert connection.auto_reply(request) == refusal(Command.DEVICE_SET_IRQS, errno.EINVAL)


def test_chosen_interrupts() -> None:
    connection = negotiated()
    for flags, data, vectors in (
        (0x22, b"\1\0\1", (2, 4)),
        (0x22, bytes(3), ()),
        (0x21, b"", (2, 3, 4)),
    ):
        payload = set_irqs(flags, MSIX, 2, 3, data)
        event = feed(connection, Command.DEVICE_SET_IRQS, payload).event
        assert isinstance(event, events.ActOnIrqs)
        assert event.vectors == vectors


def test_several_writes_at_once_need_agreement() -> None:
    capabilities = b'{"capabilities":{"max_msg_fds":16}}\0'
    connection = negotiated(0, capabilities)
    request = feed(connection, Command.REGION_WRITE_MULTI, multi((0, 0, b"x")))
    assert finish(connection, request) == refusal(Command.REGION_WRITE_MULTI, errno.ENOTSUP)


def test_a_device_that_cannot_be_reset() -> None:
    device = Device((Region(16, RegionFlag.READ),), (Irq(1, IrqFlag.EVENTFD),), DeviceFlag.PCI)
    connection = negotiated(device=device)
    request = feed(connection, Command.DEVICE_RESET)
    assert finish(connection, request) == refusal(Command.DEVICE_RESET, errno.ENOTSUP)


# Memory


def test_overlapping_ranges_are_refused() -> None:
    connection = negotiated()
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0x2000, 0x2000), 1))
    for start, size in ((0x2000, 0x2000), (0x1000, 0x1001), (0x3FFF, 1), (0, 1 << 40)):
        request = feed(connection, Command.DMA_MAP, dma_map(start, size), 1)
        assert finish(connection, request) == refusal(Command.DMA_MAP, errno.EEXIST)
    for start, size in ((0x1000, 0x1000), (0x4000, 0x1000)):
        request = feed(connection, Command.DMA_MAP, dma_map(start, size), 1)
        assert finish(connection, request) == reply(Command.DMA_MAP)
    assert len(connection.maps) == 3


def test_there_are_only_so_many_ranges() -> None:
    connection = ServerConnection(DEVICE, Capabilities(max_dma_maps=2))
    finish(connection, feed(connection, Command.VERSION, hello(0, QEMU_VERSION)))
    for number in range(3):
        request = feed(connection, Command.DMA_MAP, dma_map(number << 12, 4096), 1)
        expected = reply(Command.DMA_MAP) if number < 2 else refusal(Command.DMA_MAP, errno.ENOSPC)
        assert finish(connection, request) == expected


def test_a_refused_range_is_free_again() -> None:
    connection = negotiated()
    request = feed(connection, Command.DMA_MAP, dma_map(0, 4096), 1)
    assert connection.refuse(request, errno.ENOMEM) == refusal(Command.DMA_MAP, errno.ENOMEM)
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0, 8192), 1))
    assert len(connection.maps) == 1


def test_refusing_a_range_late_leaves_its_successor_alone() -> None:
    connection = negotiated()
    first = feed(connection, Command.DMA_MAP, dma_map(0, 4096), 1)
    finish(connection, feed(connection, Command.DMA_UNMAP, dma_unmap(0, 4096)))
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0, 4096), 1))
    connection.refuse(first, errno.ENOMEM)
    assert len(connection.maps) == 1


def test_unmapping_everything() -> None:
    connection = mapped()
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(1 << 32, 4096)))
    request = feed(connection, Command.DMA_UNMAP, dma_unmap(0, 0, 2))
    assert request.event == events.DmaUnmapAll()
    assert connection.ack(request) == reply(Command.DMA_UNMAP, dma_unmap(0, 0, 2))
    assert len(connection.maps) == 0

"""The server's state machine: what goes out."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from ballast_protocol.errors import InternalError
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.events import Request
from ballast_protocol.vfio_user.message import DeviceInfo, RegionIoFds
from support.vfio_messages import (
    DEVICE,
    MSIX,
    access,
    dma_map,
    dma_unmap,
    feed,
    hello,
    irq_info,
    multi,
    negotiated,
    refusal,
    region_info,
    reply,
    set_irqs,
)

NO_REPLY = int(HeaderFlag.NO_REPLY)


def test_reply_as_bytes() -> None:
    connection = negotiated()
    request = feed(connection, Command.REGION_READ, access(7, 4, 4), message_id=0x0203)
    assert connection.reply_data(request, b"\x06\x01\x10\x00") == bytes.fromhex(
        "0302 0900 24000000 01000000 00000000 0400000000000000 07000000 04000000 06011000"
    )


def test_refusal_as_bytes() -> None:
    connection = negotiated()
    request = feed(connection, Command.DMA_MAP, dma_map(0, 4096), 1, message_id=1)
    assert connection.refuse(request, errno.EINVAL) == bytes.fromhex(
        "0100 0200 10000000 21000000 16000000"
    )


@pytest.mark.parametrize(
    ("command", "payload", "fds", "answer"),
    [
        (Command.DMA_MAP, dma_map(1 << 32, 4096), 1, b""),
        (Command.DMA_UNMAP, dma_unmap(0, 4096), 0, dma_unmap(0, 4096)),
        (Command.DEVICE_SET_IRQS, set_irqs(0x21, MSIX, 0, 0), 0, b""),
        (Command.REGION_WRITE, access(0, 16, 2, b"ab"), 0, access(0, 16, 2)),
        (Command.REGION_WRITE_MULTI, multi((0, 0, b"a"), (0, 2, b"b")), 0, b"\2" + bytes(7)),
        (Command.DEVICE_RESET, b"", 0, b""),
    ],
)
def test_what_an_acknowledgement_carries(
    command: Command, payload: bytes, fds: int, answer: bytes
) -> None:
    connection = negotiated()
    connection.ack(feed(connection, Command.DMA_MAP, dma_map(0, 4096)))
    request = feed(connection, command, payload, fds)
    assert connection.auto_reply(request) is None
    assert connection.ack(request) == reply(command, answer)


def test_a_posted_write_has_no_answer_and_has_to_be_finished_all_the_same() -> None:
    connection = negotiated()
    for finish in (connection.ack, lambda request: connection.refuse(request, errno.EIO)):
        request = feed(connection, Command.REGION_WRITE, access(0, 0, 1, b"x"), flags=NO_REPLY)
        assert not request.reply_demanded
        assert connection.pending == 1
        assert finish(request) == b""
        assert connection.pending == 0


def test_what_the_connection_knows_by_itself() -> None:
    connection = negotiated()
    for command, payload, answer in (
        (Command.DEVICE_GET_INFO, DeviceInfo(16).pack(), "10000000 03000000 09000000 05000000"),
        (Command.DEVICE_GET_IRQ_INFO, irq_info(0), "10000000 07000000 00000000 01000000"),
        (Command.DEVICE_GET_IRQ_INFO, irq_info(MSIX), "10000000 09000000 02000000 06000000"),
        (
            Command.DEVICE_GET_REGION_INFO,
            region_info(7),
            "20000000 03000000 07000000 00000000 0001000000000000 0000000000000000",
        ),
        (
            Command.DEVICE_GET_REGION_INFO,
            region_info(6, 1000),
            "20000000 03000000 06000000 00000000 0000000000000000 0000000000000000",
        ),
        (
            Command.DEVICE_GET_REGION_IO_FDS,
            RegionIoFds(16, 0, 7, 0).pack(),
            "10000000 00000000 07000000 00000000",
        ),
    ):
        request = feed(connection, command, payload)
        assert connection.auto_reply(request) == reply(command, bytes.fromhex(answer))


def test_capabilities_and_the_file_wait_until_there_is_room() -> None:
    connection = negotiated()
    short = feed(connection, Command.DEVICE_GET_REGION_INFO, region_info(0, 63))
    assert connection.auto_reply(short) == reply(
        Command.DEVICE_GET_REGION_INFO,
        bytes.fromhex("40000000 03000000 00000000 00000000 0040000000000000 0000000000000000"),
    )
    whole = feed(connection, Command.DEVICE_GET_REGION_INFO, region_info(0, 64))
    assert connection.auto_reply(whole) is None
    message, with_fds = connection.describe(whole)
    assert with_fds
    assert message == reply(
        Command.DEVICE_GET_REGION_INFO,
        bytes.fromhex(
            "40000000 0f000000 00000000 20000000 0040000000000000 0000000000000000"
            "0100 0100 00000000 01000000 00000000 0020000000000000 0010000000000000"
        ),
    )


def test_a_region_that_is_mapped_as_a_whole_has_a_file_at_once() -> None:
    connection = negotiated()
    request = feed(connection, Command.DEVICE_GET_REGION_INFO, region_info(8))
    assert connection.auto_reply(request) is None
    assert connection.describe(request) == (
        reply(
            Command.DEVICE_GET_REGION_INFO,
            bytes.fromhex("20000000 06000000 08000000 00000000 0010000000000000 0080000000000000"),
        ),
        True,
    )


def test_eventfds_of_a_region() -> None:
    connection = negotiated()
    command = Command.DEVICE_GET_REGION_IO_FDS
    short = feed(connection, command, RegionIoFds(95, 0, 0, 0).pack())
    head = bytes.fromhex("60000000 00000000 00000000 02000000")
    assert connection.auto_reply(short) == reply(command, head)
    whole = feed(connection, command, RegionIoFds(96, 0, 0, 0).pack())
    assert connection.auto_reply(whole) is None
    message, with_fds = connection.describe(whole)
    assert with_fds
    assert message == reply(
        command,
        head
        + bytes.fromhex("0030000000000000 0200000000000000 00000000 00000000" + "00" * 16)
        + bytes.fromhex("0430000000000000 0200000000000000 01000000 00000000" + "00" * 16),
    )


def test_no_file_goes_along_with_no_reply() -> None:
    connection = negotiated()
    request = feed(connection, Command.DEVICE_GET_REGION_INFO, region_info(8), flags=NO_REPLY)
    assert connection.describe(request) == (b"", False)


def test_memory_is_never_kept_from_its_owner() -> None:
    connection = negotiated()
    connection.ack(feed(connection, Command.DMA_MAP, dma_map(0, 4096)))
    for payload in (dma_unmap(0, 4096), dma_unmap(0, 0, 2)):
        request = feed(connection, Command.DMA_UNMAP, payload)
        with pytest.raises(InternalError, match="cannot be refused"):
            connection.refuse(request, errno.EBUSY)
        assert connection.ack(request) == reply(Command.DMA_UNMAP, payload)


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection, request: connection.ack(request),
        lambda connection, request: connection.reply_data(request, b"abc"),
        lambda connection, request: connection.describe(request),
    ],
)
def test_the_wrong_reply_is_our_own_fault_and_can_still_be_mended(
    answer: Callable[[ServerConnection, Request], object],
) -> None:
    connection = negotiated()
    request = feed(connection, Command.REGION_READ, access(0, 0, 4))
    with pytest.raises(InternalError):
        answer(connection, request)
    assert connection.reply_data(request, b"abcd")
    with pytest.raises(InternalError, match="is not pending"):
        answer(connection, request)


def test_a_refused_request_cannot_be_acknowledged() -> None:
    connection = negotiated()
    request = feed(connection, Command.DMA_MAP, dma_map(0, 0))
    with pytest.raises(InternalError, match="DMA_MAP wants"):
        connection.ack(request)
    assert connection.auto_reply(request) == refusal(Command.DMA_MAP, errno.EINVAL)


def test_another_connections_request_is_not_pending() -> None:
    ours, theirs = ServerConnection(DEVICE), ServerConnection(DEVICE)
    feed(ours, Command.VERSION, hello())
    with pytest.raises(InternalError, match="is not pending"):
        ours.auto_reply(feed(theirs, Command.VERSION, hello()))

"""Commands of the server's own, and their replies among the client's commands."""

from __future__ import annotations

import errno

import pytest

from ballast_protocol.errors import AddressError, InternalError, MalformedError, PeerError
from ballast_protocol.vfio_user.capabilities import Capabilities
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.dma import MAX_COMMANDS, DmaLayout
from ballast_protocol.vfio_user.events import DmaFailed, DmaReadDone, DmaWriteDone
from ballast_protocol.vfio_user.message import DmaAccess, Header
from support.vfio_messages import DEVICE, dma_map, dma_unmap, feed, hello, negotiated, receive

REPLY, ERROR = int(HeaderFlag.REPLY), int(HeaderFlag.ERROR)
DATA = bytes(range(1, 17))


def with_memory(capabilities: Capabilities | None = None) -> ServerConnection:
    """Return a connection with 64 KiB in two ranges, and a read-only page behind them."""
    connection = negotiated()
    if capabilities is not None:
        connection = ServerConnection(DEVICE, capabilities)
        connection.auto_reply(feed(connection, Command.VERSION, hello()))
    for payload in (
        dma_map(0, 0x8000),
        dma_map(0x8000, 0x8000),
        dma_map(0x10000, 0x1000, flags=1),
    ):
        connection.ack(feed(connection, Command.DMA_MAP, payload))
    return connection


def read_reply(address: int, data: bytes) -> bytes:
    return DmaAccess(address, len(data)).pack() + data


def test_read_as_bytes() -> None:
    connection = with_memory()
    command = connection.dma_read(0x7FF8, 16)
    assert command.data == bytes.fromhex(
        "0000 0b00 20000000 00000000 00000000 f87f000000000000 1000000000000000"
    )
    done = receive(
        connection, Command.DMA_READ, read_reply(0x7FF8, DATA), flags=REPLY, message_id=0
    )
    assert done == DmaReadDone(command.command_id, 0x7FF8, DATA)
    assert connection.dma_layout is DmaLayout.SPECIFIED


@pytest.mark.parametrize("size", [16, 12, 0])
def test_write_and_its_three_replies(size: int) -> None:
    connection = with_memory()
    command = connection.dma_write(0xFF0, DATA)
    assert command.data[16:] == DmaAccess(0xFF0, 16).pack() + DATA
    payload = DmaAccess(0xFF0, 16).pack()[:size]
    done = receive(connection, Command.DMA_WRITE, payload, flags=REPLY, message_id=0)
    assert done == DmaWriteDone(command.command_id, 0xFF0, 16)


def test_replies_come_in_any_order_among_commands() -> None:
    connection = with_memory()
    commands = [connection.dma_read(n << 12, 4) for n in range(3)]
    assert [command.command_id for command in commands] == [0, 1, 2]
    # The client's ids are its own: this one equals that of a command of ours.
    reset = feed(connection, Command.DEVICE_RESET, message_id=1)
    for number in (1, 2, 0):
        done = receive(
            connection,
            Command.DMA_READ,
            read_reply(number << 12, b"%4d" % number),
            flags=REPLY,
            message_id=number,
        )
        assert done == DmaReadDone(number, number << 12, b"%4d" % number)
    assert connection.ack(reset)


@pytest.mark.parametrize("payload", [b"", b"needless"])
@pytest.mark.parametrize("error", [errno.E2BIG, 0])
def test_the_client_may_refuse(payload: bytes, error: int) -> None:
    connection = with_memory()
    command = connection.dma_read(0, 4096)
    header = Header(0, 11, 16 + len(payload), HeaderFlag(REPLY | ERROR), error)
    done = connection.receive(header.pack())
    if payload:
        assert done is None
        done = connection.receive(payload)
    assert done == DmaFailed(command.command_id, error)


@pytest.mark.parametrize(
    ("command", "message_id", "payload", "fds"),
    [
        (Command.DMA_READ, 1, b"", 0),  # nobody waits for it
        (Command.DMA_WRITE, 0, b"", 0),  # an answer to something else
        (Command.DMA_MAP, 0, b"", 0),
        (Command.DMA_READ, 0, read_reply(0, bytes(17)), 0),  # too long
        (Command.DMA_READ, 0, read_reply(0, bytes(15)), 0),  # too short
        (Command.DMA_READ, 0, b"", 0),
        (Command.DMA_READ, 0, read_reply(4096, DATA), 0),  # from elsewhere
        (Command.DMA_READ, 0, DmaAccess(0, 8).pack() + DATA, 0),
        (Command.DMA_READ, 0, DmaAccess(0, 1 << 32 | 16).pack() + DATA, 0),  # no layout
        (Command.DMA_READ, 0, read_reply(0, DATA), 1),  # a descriptor
    ],
)
def test_replies_that_do_not_fit_are_fatal(
    command: Command, message_id: int, payload: bytes, fds: int
) -> None:
    connection = with_memory()
    connection.dma_read(0, 16)
    with pytest.raises(PeerError, match=command.name):
        receive(connection, command, payload, fds, REPLY, message_id)
    assert connection.broken


def test_a_write_that_is_answered_for_elsewhere_is_fatal() -> None:
    connection = with_memory()
    connection.dma_write(0, DATA)
    with pytest.raises(MalformedError, match="DMA_WRITE"):
        receive(connection, Command.DMA_WRITE, DmaAccess(1, 16).pack(), 0, REPLY, 0)


def test_nothing_is_answered_twice() -> None:
    connection = with_memory()
    connection.dma_read(0, 16)
    receive(connection, Command.DMA_READ, read_reply(0, DATA), 0, REPLY, 0)
    with pytest.raises(MalformedError, match="nothing waits"):
        receive(connection, Command.DMA_READ, read_reply(0, DATA), 0, REPLY, 0)


# QEMU 10's layout


def short_reply(address: int, data: bytes) -> bytes:
    """What QEMU 10.1 answers: a 32-bit count, the data right behind it, and padding."""
    return DmaAccess(address, len(data)).pack()[:12] + data + bytes(4)


@pytest.mark.parametrize("data", [DATA, b"\1", b"\0\0\0\1" + bytes(12), DATA + bytes(16)])
def test_the_older_layout_is_recognised_by_a_read(data: bytes) -> None:
    connection = with_memory()
    connection.dma_read(0, len(data))
    done = receive(connection, Command.DMA_READ, short_reply(0, data), 0, REPLY, 0)
    assert done == DmaReadDone(0, 0, data)
    assert connection.dma_layout is DmaLayout.SHORT_COUNT
    with pytest.raises(InternalError, match="misread DMA_WRITE"):
        connection.dma_write(0, DATA)
    # Once known, it holds for data that could be either.
    connection.dma_read(0, 12)
    payload = short_reply(0, bytes(4) + DATA[:8])
    with_zeros = receive(connection, Command.DMA_READ, payload, 0, REPLY, 1)
    assert with_zeros == DmaReadDone(1, 0, bytes(4) + DATA[:8])


def test_zeros_say_nothing_about_the_layout() -> None:
    connection = with_memory()
    connection.dma_read(0, 16)
    done = receive(connection, Command.DMA_READ, read_reply(0, bytes(16)), 0, REPLY, 0)
    assert done == DmaReadDone(0, 0, bytes(16))
    assert connection.dma_layout is DmaLayout.UNKNOWN


def test_a_client_does_not_change_its_layout() -> None:
    connection = with_memory()
    connection.dma_read(0, 16)
    receive(connection, Command.DMA_READ, read_reply(0, DATA), 0, REPLY, 0)
    connection.dma_read(0, 16)
    with pytest.raises(MalformedError, match="not that of earlier"):
        receive(connection, Command.DMA_READ, short_reply(0, DATA), 0, REPLY, 1)


# Bounds


@pytest.mark.parametrize(
    ("address", "count"),
    [(0x10FFF, 2), (0x11000, 1), (1 << 40, 1), (0xFFF0, 0x1011), ((1 << 64) - 1, 2)],
)
def test_only_what_is_mapped_is_read(address: int, count: int) -> None:
    connection = with_memory()
    with pytest.raises(AddressError, match="not mapped"):
        connection.dma_read(address, count)
    assert connection.dma_read(0, 0x11000)


def test_rights_hold_for_every_range_touched() -> None:
    connection = with_memory()
    with pytest.raises(AddressError, match="0x10000 is not mapped to WRITE"):
        connection.dma_write(0xFFFF, b"ab")
    assert connection.dma_write(0xFFFF, b"a")
    connection.ack(feed(connection, Command.DMA_UNMAP, dma_unmap(0x8000, 0x8000)))
    with pytest.raises(AddressError, match="0x8000 is not mapped"):
        connection.dma_read(0x7FFF, 2)


def test_transfers_are_bounded_by_both_sides() -> None:
    connection = with_memory(Capabilities(max_data_xfer_size=8192))
    assert connection.max_dma_transfer == 8192
    assert connection.dma_read(0, 8192)
    for count in (8193, 0):
        with pytest.raises(InternalError, match=f"{count} bytes in one command"):
            connection.dma_read(0, count)
    with pytest.raises(InternalError, match="0 bytes in one command"):
        connection.dma_write(0, b"")


def test_only_so_many_commands_wait_and_ids_are_not_reused_meanwhile() -> None:
    connection = with_memory()
    first = connection.dma_read(0, 16)
    for _ in range(MAX_COMMANDS - 1):
        connection.dma_read(0, 16)
    with pytest.raises(InternalError, match="wait for replies"):
        connection.dma_read(0, 16)
    # Once around the id space, the first one still waits.
    last = MAX_COMMANDS - 1
    for _ in range(0x10000):
        receive(connection, Command.DMA_READ, read_reply(0, DATA), 0, REPLY, last)
        last = connection.dma_read(0, 16).command_id
        assert last != first.command_id

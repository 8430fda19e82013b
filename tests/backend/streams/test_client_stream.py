from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from ballast.streams.client_stream import ClientStream
from ballast.streams.fds import FdSet
from ballast_protocol.errors import PeerError
from support.fds import none_left_open

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with none_left_open():
        ours, theirs = socket.socketpair()
        yield ours, theirs
        theirs.close()
        ours.close()


async def test_bytes_with_descriptors(pair: Pair) -> None:
    stream = ClientStream(pair[0])
    with FdSet() as fds:
        reading = asyncio.create_task(stream.read(100, fds))
        await asyncio.sleep(0)
        socket.send_fds(pair[1], [b"hello"], [0, 1])
        assert await reading == b"hello"
        assert len(fds) == 2
        assert os.path.samestat(os.fstat(fds.peek()), os.fstat(0))
        pair[1].shutdown(socket.SHUT_WR)
        assert await stream.read(100, fds) == b""
    stream.close()


async def test_what_is_not_read_is_counted_and_sent_later(pair: Pair) -> None:
    stream = ClientStream(pair[0])
    data = os.urandom(4 << 20)
    stream.write(data)
    stream.write(b"the end")
    assert 0 < stream.unsent_bytes < len(data) + 7
    draining = asyncio.create_task(stream.drain())
    received = bytearray()
    pair[1].setblocking(False)
    while len(received) < len(data) + 7:
        received += await asyncio.get_running_loop().sock_recv(pair[1], 1 << 20)
    await draining
    assert bytes(received) == data + b"the end"
    assert stream.unsent_bytes == 0
    stream.close()


async def test_a_client_that_leaves(pair: Pair) -> None:
    stream = ClientStream(pair[0])
    pair[1].close()
    stream.write(b"x")
    stream.write(b"y")
    assert stream.is_closed
    with pytest.raises(PeerError):
        await stream.drain()
    with FdSet() as fds:
        assert await stream.read(1, fds) == b""
    stream.close()


async def test_closing_wakes_who_waits(pair: Pair) -> None:
    stream = ClientStream(pair[0])
    stream.write(bytes(4 << 20))
    with FdSet() as fds:
        reading = asyncio.create_task(stream.read(1, fds))
        draining = asyncio.create_task(stream.drain())
        await asyncio.sleep(0)
        stream.close()
        assert await reading == b""
        with pytest.raises(PeerError):
            await draining
    stream.close()


async def test_reading_can_be_ended_from_here(pair: Pair) -> None:
    stream = ClientStream(pair[0])
    with FdSet() as fds:
        reading = asyncio.create_task(stream.read(10, fds))
        await asyncio.sleep(0)
        stream.end_reading()
        assert await reading == b""
    stream.write(b"still")
    assert pair[1].recv(10) == b"still"
    stream.close()

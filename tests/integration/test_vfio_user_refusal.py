"""A vfio-user server that is busy says so to whoever else comes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.transport.vfio_user import refusal
from ballast.transport.vfio_user.server import MAX_REFUSALS, VfioUserServer
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.message import Header
from support.backend import Listener, until
from support.fds import memory_file, none_left_open

PAYLOAD = b"\0\0\0\0{}\0"
ASKED = Header(7, Command.VERSION, Header.SIZE + len(PAYLOAD)).pack() + PAYLOAD


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Path]:
    """Where a server listens that has a client."""
    path = tmp_path / "vfio-user.sock"
    with none_left_open():
        server = VfioUserServer(BalloonDevice(Listener()), path=path)
        await server.start()
        with connect(path):
            await until(lambda: server.session is not None)
            yield path
            assert server.session is not None
            await server.close()


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.setblocking(False)
    return client


async def receive(client: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(client, 4096)


async def assert_refused(client: socket.socket) -> None:
    reply = Header.unpack(await receive(client))
    assert (reply.message_id, reply.command, reply.size) == (7, Command.VERSION, Header.SIZE)
    assert reply.flags == HeaderFlag.REPLY | HeaderFlag.ERROR
    assert reply.error == errno.EBUSY


async def test_the_first_question_is_answered_and_the_client_may_leave_in_peace(
    busy: Path,
) -> None:
    with connect(busy) as client:
        client.send(ASKED)
        await assert_refused(client)
        client.send(ASKED)
        with pytest.raises(BlockingIOError):
            client.recv(1)


async def test_a_question_may_come_in_pieces_and_with_files(busy: Path) -> None:
    with connect(busy) as client:
        fd = memory_file(4096)
        socket.send_fds(client, [ASKED[:5]], [fd, fd])
        os.close(fd)
        await asyncio.sleep(0)
        client.send(ASKED[5:])
        await assert_refused(client)


async def test_who_never_asks_is_cut_off(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "PATIENCE_SECONDS", 0.01)
    with connect(busy) as client:
        client.send(ASKED[:3])
        assert await receive(client) == b""


async def test_a_crowd_is_cut_off(busy: Path) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(busy)) for _ in range(MAX_REFUSALS + 1)]
        assert await receive(crowd[-1]) == b""
        for client in crowd[:-1]:
            client.send(ASKED)
            await assert_refused(client)

"""A QMP server on a socket, and clients of all manners for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from ballast.qmp.connection import ClientLimits
from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.server import QmpServer
from ballast_protocol.qmp import Version
from support.balloon_control import FakeBalloonControl

VERSION = Version(1, 2, 3, "ballast 1.2.3")
NOW_NS = 1_700_000_000_000_005_000


@asynccontextmanager
async def serving(
    path: Path,
    vm: FakeBalloonControl | None = None,
    *,
    limits: ClientLimits | None = None,
    max_clients: int = 64,
    monitor: QemuMonitor | None = None,
) -> AsyncIterator[QmpServer]:
    server = QmpServer(
        vm or FakeBalloonControl(),
        path,
        VERSION,
        limits=limits,
        max_clients=max_clients,
        unix_time_ns=lambda: NOW_NS,
        monitor=monitor,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def qmp_client(path: Path) -> AsyncIterator[QMPClient]:
    client = QMPClient()
    await client.connect(str(path))
    try:
        yield client
    finally:
        # A server that has left has been noticed by whoever asked it for something.
        with contextlib.suppress(EOFError, ConnectionError):
            await client.disconnect()


class RawPeer:
    """Nothing but a socket, for what well-behaved clients do not do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> Any:
        """Return the next message; None at the end of the stream."""
        async with asyncio.timeout(20):
            line = await self._reader.readline()
        return json.loads(line) if line else None

    async def ask(self, data: bytes) -> Any:
        self.send(data)
        return await self.receive()

    async def negotiate(self) -> None:
        assert "QMP" in await self.receive()
        assert await self.ask(b'{"execute": "qmp_capabilities"}') == {"return": {}}


@asynccontextmanager
async def raw_peer(path: Path) -> AsyncIterator[RawPeer]:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        # The transport closes its socket in the loop's next turns.
        while not reader.at_eof():
            await reader.read(1 << 16)
        await asyncio.sleep(0)


@asynccontextmanager
async def deaf_peer(path: Path) -> AsyncIterator[socket.socket]:
    """A client that has negotiated, and reads nothing of what follows."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, str(path))
        await loop.sock_sendall(deaf, b'{"execute": "qmp_capabilities"}')
        await loop.sock_recv(deaf, 1)
        yield deaf

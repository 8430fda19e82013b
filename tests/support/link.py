"""A front-end's messages to a vhost-user back-end, and the answers, over a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    Header,
    HeaderFlag,
    ProtocolFeature,
    Request,
    U64Payload,
    pack_message,
)

PATIENCE_SECONDS = 20.0
"""How long to wait for the back-end before the test has failed. QEMU itself waits for ever."""


class FrontendError(Exception):
    """The back-end did not do what QEMU would have needed."""


class RefusedError(FrontendError):
    """The back-end answered a request with a non-zero status."""


class Link:
    """The front-end's end of the main connection.

    Attributes:
        socket: The connected socket, which whoever made the link closes.
        protocol_features: What both sides have agreed on; without REPLY_ACK, `tell` does not ask.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.protocol_features = ProtocolFeature(0)

    async def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes, with descriptors at the first of them."""
        await send_all(self.socket, data, fds)

    async def receive(self) -> tuple[Header, bytes]:
        """Read one message of the back-end's on the main connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            header = Header.unpack(await read_exactly(self.socket, Header.SIZE))
            return header, await read_exactly(self.socket, header.size)

    async def ask(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request that has a reply of its own and return the reply's payload."""
        await self.send_raw(pack_message(request, payload), fds)
        header, answer = await self.receive()
        if header.request != request or header.flags != REPLY_FLAGS:
            raise FrontendError(f"{header} answers {request.name}")
        return answer

    async def ask_u64(self, request: Request) -> int:
        """Send a request that is answered by a number."""
        answer = await self.ask(request)
        if len(answer) != U64Payload.SIZE:
            raise FrontendError(f"{len(answer)} bytes answer {request.name}")
        return U64Payload.unpack(answer).value

    async def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request; where REPLY_ACK was agreed on, ask for its status and check it.

        Raises RefusedError for a status other than 0.
        """
        if not self.protocol_features & ProtocolFeature.REPLY_ACK:
            await self.send_raw(pack_message(request, payload), fds)
            return
        flags = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
        await self.send_raw(pack_message(request, payload, flags), fds)
        header, answer = await self.receive()
        if header.request != request or header.flags != REPLY_FLAGS:
            raise FrontendError(f"{header} answers {request.name}")
        if status := U64Payload.unpack(answer).value:
            raise RefusedError(f"{request.name} was answered {status}")

    async def post(self, request: Request, payload: bytes = b"") -> None:
        """Send a request that nobody answers."""
        await self.send_raw(pack_message(request, payload))


async def send_all(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send any bytes, with descriptors at the first of them."""
    loop = asyncio.get_running_loop()
    sent = 0
    while fds and not sent:
        try:
            sent = socket.send_fds(sock, [data], list(fds))
        except BlockingIOError:
            await ready(loop.add_writer, loop.remove_writer, sock.fileno())
    await loop.sock_sendall(sock, data[sent:])


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes; raise FrontendError if the back-end hangs up before."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise FrontendError(f"the back-end hung up after {len(data)} of {size} bytes")
        data += piece
    return data


async def ready(
    add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], fd: int
) -> None:
    """Wait until the loop finds `fd` readable or writable, whichever `add` asks for."""
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def resolve() -> None:
        if not found.done():
            found.set_result(None)

    add(fd, resolve)
    try:
        await found
    finally:
        remove(fd)

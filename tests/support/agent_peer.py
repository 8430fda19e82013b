"""QEMU's end of the agent channel, and what a link told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ballast.guest_link.events import LinkEvent
from ballast.guest_link.link import GuestLink
from ballast_protocol.guest import Hello, HelloRequest, Message, Welcome, decode, encode
from ballast_protocol.guest_framing import Frame, FrameDecoder
from support.guest_messages import HELLO

PATIENCE_SECONDS = 20


class Guest:
    """QEMU's end of the channel, with an agent behind it that says what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    def say(self, message: Message, request_id: int = 0) -> None:
        self.writer.write(encode(message, request_id))

    async def hear(self) -> tuple[int, Message]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self._frames:
                data = await self._reader.read(1 << 16)
                assert data, "the link hung up"
                self._frames += self._decoder.feed(data)
        frame = self._frames.pop(0)
        return frame.request_id, decode(frame)

    async def hear_end(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self._reader.read(1 << 16):
                pass

    async def introduce(self, hello: Hello = HELLO) -> None:
        self.say(hello)
        assert isinstance((await self.hear())[1], HelloRequest)
        assert isinstance((await self.hear())[1], Welcome)


@asynccontextmanager
async def qemu(link: GuestLink) -> AsyncIterator[Guest]:
    guest = Guest(*await asyncio.open_unix_connection(link.path))
    try:
        yield guest
    finally:
        guest.writer.transport.abort()


class Events:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[LinkEvent] = asyncio.Queue()

    def __call__(self, event: LinkEvent) -> None:
        self._queue.put_nowait(event)

    async def next(self) -> LinkEvent:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._queue.get()

    async def until(self, wanted: LinkEvent) -> None:
        while await self.next() is not wanted:
            pass

    def empty(self) -> bool:
        return self._queue.empty()

"""The daemon's half of the trade in blocks against the agent's, over a channel that breaks.

The guest's kernel is a model that checks every discard: no page is ever in use when the host drops
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from ballast.balloon.blocks import BlockBook
from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.pages import PageBook
from ballast.guest_link.blocks import BlockSession
from ballast.memory.map import MemoryMap, Piece, Region, RegionLayout
from ballast_agent.blocks import limits
from ballast_protocol.guest import (
    ABILITY_BLOCKS,
    BLOCKS_VERSION,
    Hello,
    HelloRequest,
    Message,
    Welcome,
)
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    BLOCK_BYTES,
    PAGES_PER_BLOCK,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Holding,
    NodeGoal,
    SweepDone,
)
from ballast_protocol.guest_framing import FrameDecoder
from support.block_world import ScriptedHost, World
from support.fake_kernel import FakeKernel

BLOCKS = 100

WATCH_SECONDS = 0.25
"""How often the agent looks at most. A guest that is always nearly short of memory is looked at a
hundred times a second otherwise, and minutes of it are played here."""


class Daemon(ScriptedHost):
    """The daemon's own session and book, with the model's kernel under it."""

    book: BlockBook
    blocks: BlockSession

    def open(self, memory: MemoryMap) -> None:
        """Begin with an empty book over a guest's memory."""
        pages = PageBook(BalloonMetrics(), self._drop)
        pages.memory = memory
        self.book = BlockBook(pages)
        self.begin()

    def begin(self) -> None:
        """Begin as a new process does, or one whose connection was closed: with a new session."""
        self.blocks = BlockSession(self.book, self.send, lambda: None)
        self.decoder = FrameDecoder()
        self.output = bytearray()
        self.send(HelloRequest())

    def _drop(self, piece: Piece) -> int:
        first = (piece.region.layout.guest_address + piece.offset) // BLOCK_BYTES
        for number in range(first, first + piece.length // BLOCK_BYTES):
            self.discard(number * PAGES_PER_BLOCK)
        return piece.length

    def _take(self, message: Message, request_id: int) -> None:
        match message:
            case Hello():
                hello = replace(message, abilities=(ABILITY_BLOCKS,))
                session = self.blocks.begin(hello, BLOCKS_VERSION)
                self.send(Welcome(2, 5.0, message.hello_id, session), request_id)
            case BlocksReport() | BlocksReleased() | Holding() | BlocksStatus() | SweepDone():
                self.blocks.take(message, request_id)

    def aim(self, blocks: int) -> None:
        self.blocks.set_goals((NodeGoal(ANY_NODE, blocks * BLOCK_BYTES),))

    def forget(self) -> None:
        """Do what the device does when a driver begins anew."""
        self.book.forget()
        self.blocks.end()
        self.send(HelloRequest())

    @property
    def held(self) -> set[int]:
        runs = self.book.runs()
        return {pfn for first, n in runs for pfn in range(first, first + n, PAGES_PER_BLOCK)}


class Guest(World):
    """A guest whose host is the daemon's own code."""

    def __init__(self, kernel: FakeKernel, memory: MemoryMap) -> None:
        self._memory = memory
        self.daemon: Daemon | None = None
        super().__init__(kernel)

    def start_host(self) -> None:
        if self.daemon is None:
            self.daemon = Daemon(self.kernel.discard, self._sessions)
            self.daemon.open(self._memory)
        else:
            self.daemon.begin()
        self.host = self.daemon
        self._told = True
        if self.session is not None:
            self._guarded(lambda session: session.connected(self.now))

    def stop_host(self) -> None:
        if self._told and self.daemon is not None:
            self._told = False
            self.daemon.blocks.end()
            self.to_agent.clear()
            self._guarded(lambda session: session.disconnected(self.now))

    def next_worker(self) -> None:
        """Have another worker take over the connection, unread bytes included; it knows no blocks.

        What its predecessor has not written is lost.
        """
        if self._told:
            self.there.book.clear()
            self.there.begin()

    @property
    def there(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon


@contextmanager
def guest(seed: int, blocks: int = BLOCKS) -> Iterator[Guest]:
    """A guest with so many blocks of memory, where the seed says."""
    kernel = FakeKernel.of(blocks, seed=seed)
    size = (max(kernel.blocks) // PAGES_PER_BLOCK + 1) * BLOCK_BYTES
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    region = Region(RegionLayout(0, size, 0x7F00_0000_0000, 0), fd)
    try:
        with patch.object(limits, "MIN_WATCH_SECONDS", WATCH_SECONDS):
            yield Guest(kernel, MemoryMap().with_region(region))
    finally:
        region.close()

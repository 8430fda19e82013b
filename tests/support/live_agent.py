"""The real agent of a guest whose kernel is a model, on a real socket, a step at a time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ballast_agent.blocks.manager import BlockManager
from ballast_agent.blocks.options import BlockOptions
from ballast_agent.session import AgentSession
from ballast_protocol.guest import MessageKind
from ballast_protocol.guest_blocks import BLOCK_BYTES
from ballast_protocol.guest_framing import MAGIC
from support.block_world import Later
from support.fake_kernel import POOL, FakeKernel
from support.guest_messages import report
from support.scripted_agent import BLOCKS_HELLO

PATIENCE_SECONDS = 60.0
STEP_SECONDS = 0.005
READ_BYTES = 1 << 16
KIND_OFFSET = 5
"""Of a frame's kind; see `ballast_protocol.guest_framing`."""


class LiveAgent:
    """One agent; nothing of it happens but in these calls.

    Attributes:
        session: What it says.
        kernel: Where its blocks are.
    """

    def __init__(self, path: Path, blocks: int) -> None:
        """Connect the agent of a guest with so many blocks of free memory."""
        self.kernel = FakeKernel.of(blocks)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.setblocking(False)
        self._later = Later()
        self.session = AgentSession(BLOCKS_HELLO, report)
        options = BlockOptions(reserve_bytes=8 * BLOCK_BYTES)
        self.blocks = BlockManager(self.kernel, self.session.send, self._later, options)
        self.session.blocks = self.blocks
        self.blocks.start(time.monotonic())
        self.session.connected(time.monotonic())

    def close(self) -> None:
        """Close its connection."""
        self._socket.close()

    @property
    def isolated(self) -> int:
        """How many blocks it has taken out of the guest's hands."""
        return len(self.kernel.in_state(POOL))

    def write(self, upto: MessageKind | None = None) -> None:
        """Send all messages that wait, or those up to the first of a kind."""
        output = self.session.output
        end = len(output)
        if upto is not None:
            start = output.find(MAGIC)
            while output[start + KIND_OFFSET] != upto:
                start = output.find(MAGIC, start + 1)
                assert start > 0, f"there is no {upto}"
            after = output.find(MAGIC, start + 1)
            end = after if after > 0 else end
        assert self._socket.send(output[:end]) == end
        del output[:end]

    def read(self) -> None:
        """Take what has arrived, all at once."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        assert data, "the link hung up"
        self.session.receive(data, time.monotonic())

    def has_mail(self) -> bool:
        """Tell whether anything waits to be read."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def tick(self) -> None:
        """Do what is due."""
        if self._later.finish():
            self.blocks.tick(time.monotonic())
        self.session.tick(time.monotonic())

    async def run(self, until: Callable[[], bool]) -> None:
        """Let everything go on until something is the case."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not until():
                self.write()
                self.read()
                self.tick()
                await asyncio.sleep(STEP_SECONDS)

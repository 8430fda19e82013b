"""The kernel's book and the agent's over the same RAM, and what was discarded."""

from __future__ import annotations

from ballast.balloon.blocks import BlockBook
from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.pages import PageBook
from ballast.memory.map import Piece
from ballast.memory.reclaim import discard
from ballast_protocol.guest_blocks import BLOCK_BYTES, PAGES_PER_BLOCK, PageRange
from support.driver import GuestRam


def span(first_block: int, blocks: int = 1, node: int = 0) -> PageRange:
    return PageRange(first_block * PAGES_PER_BLOCK, blocks * PAGES_PER_BLOCK, node)


class Books:
    """Both books over `ram`, and what was discarded."""

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self.discards: list[tuple[int, int]] = []
        self.pages = PageBook(BalloonMetrics(), self._discard)
        self.blocks = BlockBook(self.pages)
        self.pages.on_inflate = self.blocks.kernel_took

    def _discard(self, piece: Piece) -> int:
        address = piece.region.layout.guest_address + piece.offset
        self.discards.append((address // BLOCK_BYTES, piece.length // BLOCK_BYTES))
        return discard(piece)

    def fill(self, *blocks: int) -> None:
        for block in blocks:
            self.ram.write(block * BLOCK_BYTES, b"\x55" * BLOCK_BYTES)

    def is_empty(self, block: int) -> bool:
        return not any(self.ram.read(block * BLOCK_BYTES, BLOCK_BYTES))

    def held(self) -> set[int]:
        return {
            pfn // PAGES_PER_BLOCK
            for first, count in self.blocks.runs()
            for pfn in range(first, first + count, PAGES_PER_BLOCK)
        }

"""Guest pages that can be told apart: each filled with its own number, so that no loss goes unseen.

pages = MarkedPages(ram)
...
assert pages.lost() == set()
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.pages import PageBook
from ballast.queue.chain import Buffer, Chain
from support.driver import PAGE_SIZE, GuestRam, RamBlock

SCRATCH = RamBlock(1 << 45, 1 << 17)
"""Where the buffers are: RAM beyond all that a page number can name."""

_EMPTY = bytes(PAGE_SIZE)


def pfn_array(pfns: Iterable[int]) -> bytes:
    """Return what a driver puts into an inflate or deflate buffer."""
    numbers = list(pfns)
    return struct.pack(f"<{len(numbers)}I", *numbers)


class MarkedPages:
    """All pages of `ram`, or those named, filled so that the host backs each of them."""

    def __init__(self, ram: GuestRam, pfns: Iterable[int] | None = None) -> None:
        self._ram = ram
        self.pfns = frozenset(all_pfns(ram) if pfns is None else pfns)
        self.mark(self.pfns)

    def mark(self, pfns: Iterable[int]) -> None:
        """Fill pages, as a guest does that uses them again."""
        for pfn in pfns:
            self._ram.write(pfn * PAGE_SIZE, _mark(pfn))

    def gone(self) -> set[int]:
        """Return the pages that were given back: they read as zeros."""
        return {pfn for pfn in self.pfns if self._bytes(pfn) == _EMPTY}

    def lost(self, allowed: Iterable[int] = ()) -> set[int]:
        """Return the pages that have lost what the guest put there, save those allowed to."""
        return {pfn for pfn in self.pfns - set(allowed) if self._bytes(pfn) != _mark(pfn)}

    def _bytes(self, pfn: int) -> bytes:
        return self._ram.read(pfn * PAGE_SIZE, PAGE_SIZE)


def all_pfns(ram: GuestRam) -> Iterable[int]:
    """Return the numbers of all pages that `ram` has."""
    for item in ram.regions:
        first = item.region.guest_address // PAGE_SIZE
        yield from range(first, first + item.region.size // PAGE_SIZE)


def _mark(pfn: int) -> bytes:
    return struct.pack("<Q", pfn + 1) * (PAGE_SIZE // 8)


class Book:
    """A book over `ram`, with buffers written into its scratch block."""

    def __init__(self, ram: GuestRam, book: PageBook, metrics: BalloonMetrics) -> None:
        self.ram, self.book, self.metrics = ram, book, metrics

    def chain(self, pfns: Iterable[int], tail: bytes = b"") -> Chain:
        data = pfn_array(pfns) + tail
        self.ram.write(SCRATCH.guest_address, data)
        return Chain(0, (Buffer(SCRATCH.guest_address, len(data)),), ())

    def inflate(self, *pfns: int) -> int:
        return self.book.inflate(self.book.read(self.chain(pfns)))

    def deflate(self, *pfns: int) -> None:
        self.book.deflate(self.book.read(self.chain(pfns)))

    def held(self) -> set[int]:
        runs = self.book.ledger.runs()
        return {page for first, count in runs for page in range(first, first + count)}

"""The book of which guest pages are given up: exact at all times, page for page.

A bitmap with one bit for each 4 KiB page, made in chunks as pages arrive, so that a guest with an
empty balloon costs nothing and a full one 32 KiB for each GiB. Runs are set and cleared as big
integers, many pages in one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ballast.balloon.ranges import Run

_CHUNK_SHIFT = 15
CHUNK_PAGES = 1 << _CHUNK_SHIFT
"""Pages in one chunk of the bitmap: 128 MiB of guest memory in 4 KiB."""

CHUNK_BYTES = CHUNK_PAGES // 8
"""Bytes of one chunk."""

_WINDOW_BYTES = 32
"""Looked through at once for runs; the larger the integer, the dearer each run in it."""


class Chunks(Protocol):
    """Where the bitmap is: chunks of `CHUNK_BYTES`, of which only those exist that are needed."""

    def get(self, number: int) -> bytearray | memoryview | None:
        """Return a chunk, writable; None if it does not exist."""

    def make(self, number: int) -> bytearray | memoryview:
        """Return a chunk that does not exist yet, all zeros."""

    def numbers(self) -> Iterable[int]:
        """Return the numbers of those that exist, in any order."""

    def clear(self) -> None:
        """Have none exist."""


class OwnChunks:
    """A bitmap in the memory of this process, which ends with it."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def get(self, number: int) -> bytearray | None:
        """Return a chunk; None if it does not exist."""
        return self._chunks.get(number)

    def make(self, number: int) -> bytearray:
        """Return a new chunk."""
        chunk = self._chunks[number] = bytearray(CHUNK_BYTES)
        return chunk

    def numbers(self) -> Iterable[int]:
        """Return the numbers of those that exist."""
        return tuple(self._chunks)

    def clear(self) -> None:
        """Forget all."""
        self._chunks.clear()


class Ledger:
    """A set of page frame numbers.

    Attributes:
        count: How many pages it holds.
    """

    def __init__(self, chunks: Chunks | None = None) -> None:
        """Begin with what is in a bitmap; with nothing, in one of its own, if none is given."""
        self._chunks = OwnChunks() if chunks is None else chunks
        self.count = sum(_population(chunk) for _, chunk in self._present())

    def _present(self) -> Iterator[tuple[int, bytearray | memoryview]]:
        for number in sorted(self._chunks.numbers()):
            chunk = self._chunks.get(number)
            if chunk is not None:
                yield number, chunk

    def add(self, first: int, count: int) -> int:
        """Enter a run of pages; return how many of them were not in the book."""
        return self.add_all(((first, count),))

    def _add_run(self, first: int, count: int) -> int:
        added = 0
        for number, start, length in _split(first, count):
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks.make(number)
            low, high, mask = _window(start, length)
            old = int.from_bytes(chunk[low:high], "little")
            chunk[low:high] = (old | mask).to_bytes(high - low, "little")
            added += length - (old & mask).bit_count()
        return added

    def add_all(self, runs: Iterable[Run]) -> int:
        """Enter runs of pages; return how many of all pages were not in the book.

        Scattered memory is given up in runs of one page, so those are entered right here.
        """
        added, get, make = 0, self._chunks.get, self._chunks.make
        for first, count in runs:
            if count != 1:
                added += self._add_run(first, count)
                continue
            number, start = first >> _CHUNK_SHIFT, first & CHUNK_PAGES - 1
            chunk = get(number)
            if chunk is None:
                chunk = make(number)
            at, bit = start >> 3, 1 << (start & 7)
            if not chunk[at] & bit:
                chunk[at] |= bit
                added += 1
        self.count += added
        return added

    def _remove_page(self, pfn: int) -> int:
        """As `remove`, for one page."""
        start = pfn & CHUNK_PAGES - 1
        chunk = self._chunks.get(pfn >> _CHUNK_SHIFT)
        at, bit = start >> 3, 1 << (start & 7)
        if chunk is None or not chunk[at] & bit:
            return 0
        chunk[at] &= ~bit
        self.count -= 1
        return 1

    def remove(self, first: int, count: int) -> int:
        """Strike out a run of pages; return how many of them were in the book."""
        if count == 1:
            return self._remove_page(first)
        removed = 0
        for number, start, length in _split(first, count):
            chunk = self._chunks.get(number)
            if chunk is None:
                continue
            low, high, mask = _window(start, length)
            old = int.from_bytes(chunk[low:high], "little")
            chunk[low:high] = (old & ~mask).to_bytes(high - low, "little")
            removed += (old & mask).bit_count()
        self.count -= removed
        return removed

    def held(self, first: int, count: int) -> int:
        """Return how many pages of a run are in the book."""
        total = 0
        for number, start, length in _split(first, count):
            chunk = self._chunks.get(number)
            if chunk is not None:
                low, high, mask = _window(start, length)
                total += (int.from_bytes(chunk[low:high], "little") & mask).bit_count()
        return total

    def clear(self) -> None:
        """Forget everything: the guest has started anew."""
        self._chunks.clear()
        self.count = 0

    def runs(self) -> Iterator[Run]:
        """Yield all pages as sorted runs."""
        pending: Run | None = None
        for first, length in self._parts_of_runs():
            if pending is not None and pending[0] + pending[1] == first:
                pending = (pending[0], pending[1] + length)
                continue
            if pending is not None:
                yield pending
            pending = (first, length)
        if pending is not None:
            yield pending

    def _parts_of_runs(self) -> Iterator[Run]:
        """Yield all pages as sorted runs that end where a window ends."""
        for number, chunk in self._present():
            for low in range(0, len(chunk), _WINDOW_BYTES):
                bits = int.from_bytes(chunk[low : low + _WINDOW_BYTES], "little")
                for start, length in _runs_of(bits):
                    yield number * CHUNK_PAGES + low * 8 + start, length


def _population(chunk: bytearray | memoryview) -> int:
    return int.from_bytes(chunk, "little").bit_count()


def _split(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut a run at chunk borders: (chunk number, first page in it, pages)."""
    while count > 0:
        number, start = divmod(first, CHUNK_PAGES)
        length = min(count, CHUNK_PAGES - start)
        yield number, start, length
        first += length
        count -= length


def _window(start: int, length: int) -> tuple[int, int, int]:
    """Return the bytes of a chunk that hold a run (low, high) and the run's bits in them."""
    low, high = start >> 3, (start + length + 7) >> 3
    return low, high, ((1 << length) - 1) << (start & 7)


def _runs_of(bits: int) -> Iterator[Run]:
    """Yield the runs of one bits of an integer, lowest first."""
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        position += zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield position, ones
        bits >>= ones
        position += ones

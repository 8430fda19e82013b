"""Inflate, deflate and report: which pages go back to the host, and the book that is kept of them.

The rules that keep the guest's data safe (docs/architecture.md):

* only pages that the guest handed over, inside RAM of the current map, are discarded;
* only whole host pages: where the host's pages are larger than 4 KiB, a host page goes back when
  the ledger holds every part of it. A driver that has not accepted MUST_TELL_HOST may be using a
  part again that it handed over a while ago; of such a driver, all parts have to come at once;
* the caller returns the buffer after these functions have returned, so after the discard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ballast.balloon.ledger import Ledger
from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.ranges import Run, join, runs_of_array
from ballast.memory.map import MemoryMap, Piece
from ballast.memory.reclaim import Discard, discard, whole_host_pages
from ballast.memory.reclaim_many import DiscardMany
from ballast.queue.chain import Buffer, Chain
from ballast_protocol.errors import QueueError
from ballast_protocol.virtio.balloon import PAGE_SIZE, PFN_SHIFT

MAX_ARRAY_BYTES = 1 << 16
"""Longest PFN array that is served: 16,384 pages. Linux sends 256 at a time, Windows 1,024."""

MANY_PIECES = 4
"""From here on one call for all of them is faster than one for each."""


class PageBook:
    """The ledger together with the memory that it speaks of.

    Attributes:
        memory: The current memory map; replaced at each change.
        ledger: The pages that the guest's kernel has given up.
        last_failure: Why the kernel last refused to free memory; empty if it never did.
        on_inflate: Told of each run of pages that the guest's kernel hands over.
        collects: The driver tells before it uses a page again (MUST_TELL_HOST), so that parts of a
            larger host page may wait in the ledger for the others.
        is_inhibited: Nothing is given back: something on the host has pinned the guest's memory.
        kept: What of the ledger was handed over meanwhile, and so is still with the host.
    """

    def __init__(
        self,
        metrics: BalloonMetrics,
        discard_piece: Discard = discard,
        ledger: Ledger | None = None,
        discard_many: DiscardMany | None = None,
    ) -> None:
        """Begin with a ledger, an empty one if none is given.

        Args:
            metrics: Where it is counted.
            discard_piece: Gives a piece back.
            ledger: The book.
            discard_many: Gives many pieces back at once; None if there is no such way.
        """
        self.memory = MemoryMap()
        self.on_inflate: Callable[[int, int], None] = lambda first, count: None
        self.ledger = Ledger() if ledger is None else ledger
        self.last_failure = ""
        self.collects = False
        self.is_inhibited = False
        self.kept = Ledger()
        self._metrics = metrics
        self._discard = discard_piece
        self._discard_many = discard_many

    def begin_anew(self) -> None:
        """Begin with another machine, whose memory is not known yet."""
        self.forget()
        self.memory = MemoryMap()
        self.last_failure = ""

    def inflate(self, runs: Sequence[Run]) -> int:
        """Take the pages of inflate buffers; return how many bytes went back to the host.

        Args:
            runs: As `read` returned them, of one buffer or of several that are returned together:
                adjacent pages of all of them go back in one piece.
        """
        given = added = in_ram = 0
        inside: list[Run] = []
        whole: list[Piece] = []
        joined = join(runs)
        for first, count in joined:
            for piece in self.memory.pieces(first << PFN_SHIFT, count << PFN_SHIFT):
                run = piece.guest_address >> PFN_SHIFT, piece.length >> PFN_SHIFT
                in_ram += run[1]
                if piece.region.host_page_bytes <= PAGE_SIZE:
                    inside.append(run)
                    whole.append(piece)
                else:
                    added += self._enter((run,))
                    given += sum(self._call(part) for part in self._complete(piece))
        added += self._enter(inside)
        given += self._call_all(whole)
        named = _pages(joined)
        self._metrics.pages_not_ram += named - in_ram
        self._metrics.inflate_pages += added
        self._metrics.pages_inflated_twice += in_ram - added + _pages(runs) - named
        return given

    def _enter(self, runs: Sequence[Run]) -> int:
        """Write runs of pages of RAM into the books; return how many were not in the ledger."""
        if self.is_inhibited:
            self.kept.add_all(runs)
        elif self.kept.count:
            for first, count in runs:
                self.kept.remove(first, count)
        added = self.ledger.add_all(runs)
        for first, count in runs:
            self.on_inflate(first, count)
        return added

    def deflate(self, runs: Sequence[Run]) -> None:
        """Strike the pages of deflate buffers out of the book, before the guest may use them."""
        for first, count in runs:
            removed = self.ledger.remove(first, count)
            if self.kept.count:
                self.kept.remove(first, count)
            self._metrics.deflate_pages += removed
            self._metrics.pages_not_inflated += count - removed

    def forget(self) -> None:
        """Begin with a driver that has given up nothing."""
        self.ledger.clear()
        self.kept.clear()

    def report(self, buffer: Buffer) -> int:
        """Give back one reported free range; return how many bytes went back to the host.

        As in QEMU, a range that is not RAM or not made of whole host pages is left alone.
        """
        pieces = list(self.memory.pieces(buffer.address, buffer.length))
        covered = sum(piece.length for piece in pieces)
        if covered != buffer.length or not all(map(_is_whole, pieces)):
            self._metrics.reports_refused += 1
            return 0
        self._metrics.reported_bytes += buffer.length
        return sum(self._call(piece) for piece in pieces)

    def give_back(self, piece: Piece) -> int:
        """Give a piece back that is not the kernel's to give; return how many bytes went back."""
        return self._call(piece)

    def waiting_bytes(self) -> int:
        """Return how much is in the book but still held by the host.

        Zero with 4 KiB host pages; with larger ones, the parts of host pages that are not complete.
        """
        waiting = 0
        for region in self.memory.regions:
            if region.host_page_bytes > PAGE_SIZE:
                whole = Piece(region, 0, region.layout.size_bytes)
                complete = sum(part.length for part in self._complete(whole))
                first = region.layout.guest_address >> PFN_SHIFT
                held = self.ledger.held(first, region.layout.size_bytes >> PFN_SHIFT)
                waiting += (held << PFN_SHIFT) - complete
        return waiting

    def read(self, chain: Chain) -> list[Run]:
        """Read a PFN array once and merge it; a trailing piece of an entry is ignored.

        Raises:
            QueueError: The array is longer than any driver's.
            AddressError: It does not lie in RAM.
        """
        if chain.readable_bytes > MAX_ARRAY_BYTES:
            raise QueueError(f"PFN array of {chain.readable_bytes} bytes")
        return runs_of_array(chain.read(self.memory, MAX_ARRAY_BYTES))

    def _call_all(self, pieces: Sequence[Piece]) -> int:
        """Give pieces of whole host pages back, in one call if they are many."""
        discard_many = self._discard_many
        if len(pieces) < MANY_PIECES or discard_many is None or self.is_inhibited:
            return sum(map(self._call, pieces))
        try:
            given = discard_many(pieces)
        except OSError:
            # One by one, to learn which of them cannot be given back.
            return sum(map(self._call, pieces))
        self._metrics.discard_calls += 1
        self._metrics.discarded_bytes += given
        return given

    def _complete(self, piece: Piece) -> Iterator[Piece]:
        """Yield the host pages that a piece touches and of which the ledger holds every part.

        Not those of which a part was handed over while nothing was given back; nor, unless parts
        are collected, those that reach beyond the piece.
        """
        for part in _touched(piece):
            if not (self.collects or _is_inside(part, piece)):
                continue
            first = part.guest_address >> PFN_SHIFT
            count = part.length >> PFN_SHIFT
            is_kept = self.kept.count and self.kept.held(first, count)
            if self.ledger.held(first, count) == count and not is_kept:
                yield part

    def _call(self, piece: Piece) -> int:
        """Give a piece back, unless that is inhibited; every discard of the VM comes through here.

        What is not given back now is not given back later either, as in QEMU: a driver that did not
        have to accept MUST_TELL_HOST may use a page again before it tells us (virtio 5.5.6).
        """
        if self.is_inhibited:
            self._metrics.inhibited_bytes += piece.length
            return 0
        self._metrics.discard_calls += 1
        try:
            given = self._discard(piece)
        except OSError as error:
            self._metrics.discard_failures += 1
            self.last_failure = str(error)
            return 0
        self._metrics.discarded_bytes += given
        return given


def _pages(runs: Sequence[Run]) -> int:
    return sum(count for _, count in runs)


def _is_whole(piece: Piece) -> bool:
    """Return whether a piece starts and ends on host page borders of its file."""
    _, length = whole_host_pages(piece)
    return length == piece.length


def _is_inside(part: Piece, piece: Piece) -> bool:
    """Return whether a piece holds all of another one of the same region."""
    return piece.offset <= part.offset and part.offset + part.length <= piece.offset + piece.length


def _touched(piece: Piece) -> Iterator[Piece]:
    """Yield every host page, whole and inside the region, of which a piece covers any part."""
    region, page = piece.region, piece.region.host_page_bytes
    skew = region.layout.file_offset % page
    offset = (piece.offset + skew) // page * page - skew
    while offset < piece.offset + piece.length:
        if offset >= 0 and offset + page <= region.layout.size_bytes:
            yield Piece(region, offset, page)
        offset += page


def spoken_of(chain: Chain) -> int:
    """Return how many bytes the page numbers in a buffer name, whether or not they are RAM."""
    return chain.readable_bytes // 4 << PFN_SHIFT

"""The second book: 2 MiB blocks that the agent in the guest holds or sweeps.

The agent takes free blocks out of the guest's allocator and reports them; what is accepted here is
entered, given back to the host, and only then acknowledged. The rules that keep the guest's data
safe (docs/architecture.md) are those of the kernel's own pages, and three more:

* the two books are disjoint: a block of which the kernel's balloon holds any page is refused, and a
  page that the kernel hands over strikes out its block, for the kernel knows best what is its own;
* only whole blocks, wholly in RAM of the current map and made of whole host pages, and only blocks
  that are not in the book already;
* a block leaves the book when the agent says that it has let go of it. It does so without asking,
  so being in this book is never permission to discard a block once more.

The guest is not trusted: what a report says of nodes is for display alone, and every block that is
not in order is refused by itself, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum

from ballast.balloon.block_set import BlockSet, NodeHoldings
from ballast.balloon.pages import PageBook
from ballast.balloon.ranges import Run
from ballast.memory.reclaim import whole_host_pages
from ballast.memory.residency import allocated_bytes
from ballast_protocol.guest_blocks import (
    MAX_REPORT_BLOCKS,
    PAGES_PER_BLOCK,
    PageRange,
    Purpose,
    Ranges,
)
from ballast_protocol.virtio.balloon import PFN_SHIFT

MAX_NODES = 64
"""How many NUMA nodes are kept apart; more than any guest has that QEMU runs well."""


class Refusal(Enum):
    """Why a block was not accepted."""

    NOT_BLOCKS = "not made of whole 2 MiB blocks"
    TOO_MANY = "more blocks than one report may have"
    TOO_MANY_NODES = "of more NUMA nodes than are kept apart"
    NOT_RAM = "not the guest's memory"
    HOST_PAGES = "not made of whole pages of the host"
    KERNEL_HOLDS = "in the kernel's balloon"
    INHIBITED = "kept, because nothing is given back to the host now"
    HELD_ALREADY = "in the book already"


@dataclass(frozen=True)
class Verdict:
    """What became of a report. When it is returned the accepted blocks are given back.

    Attributes:
        accepted_bytes: How much was entered into the book.
        freed_bytes: How much less the host holds than before.
        refused: The rest, in the order of the report.
        reasons: Why, each reason once.
    """

    accepted_bytes: int
    freed_bytes: int
    refused: Ranges
    reasons: tuple[Refusal, ...]


@dataclass
class BlockMetrics:
    """Counters; every field only grows while the daemon runs.

    Attributes:
        reports: Reports looked at.
        reported_bytes: What was in them.
        accepted_bytes: What of it was entered and given back.
        refused_bytes: What of it was not in order.
        freed_bytes: How much less the host held afterwards; a block that the guest had never used
            frees nothing.
        released_bytes: What the agent has let go of.
        unknown_released_bytes: What it claims to have let go of but was not in the book.
        contradicted_bytes: Blocks struck out because the guest's kernel handed over a page of them.
        forgotten_bytes: Blocks struck out because the guest began anew, or its agent did not name
            them any more.
    """

    reports: int = 0
    reported_bytes: int = 0
    accepted_bytes: int = 0
    refused_bytes: int = 0
    freed_bytes: int = 0
    released_bytes: int = 0
    unknown_released_bytes: int = 0
    contradicted_bytes: int = 0
    forgotten_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name."""
        return asdict(self)


@dataclass
class _Sorted:
    """A report, its good part and the rest."""

    accepted: list[Run] = field(default_factory=list)
    refused: list[PageRange] = field(default_factory=list)
    reasons: dict[Refusal, None] = field(default_factory=dict)

    def refuse(self, span: PageRange, why: Refusal) -> None:
        self.refused.append(span)
        self.reasons[why] = None


class BlockBook:
    """Which blocks the agent has taken, per purpose and node, with the memory that they are of.

    Attributes:
        metrics: Counters.
        presumed_bytes: What a predecessor's book held, until the agent has said it again: so much
            counts as held at least.
        on_forget: Told that the device has forgotten all blocks; an agent that is still there has
            to say again what it holds.
    """

    def __init__(self, pages: PageBook) -> None:
        """Begin with an empty book beside the kernel's; its memory map is used."""
        self.metrics = BlockMetrics()
        self.presumed_bytes = 0
        self.on_forget: Callable[[], None] = lambda: None
        self._pages = pages
        self._blocks = BlockSet()
        self._confirmed: BlockSet | None = None

    # What the agent says ---------------------------------------------------------------------

    def report(self, spans: Iterable[PageRange], purpose: Purpose) -> Verdict:
        """Enter what is in order and give it back; the caller acknowledges afterwards.

        It takes the thread some 10 ms for the largest report.
        """
        found, blocks_left = _Sorted(), MAX_REPORT_BLOCKS
        reported = 0
        for span in spans:
            reported += max(span.size_bytes, 0)
            why = _misshapen(span, blocks_left)
            if why is not None:
                found.refuse(span, why)
                continue
            blocks_left -= span.pages // PAGES_PER_BLOCK
            self._enter(span, purpose, found)
        freed = self._give_back(found.accepted)
        accepted = sum(pages for _, pages in found.accepted) << PFN_SHIFT
        self.metrics.reports += 1
        self.metrics.reported_bytes += reported
        self.metrics.accepted_bytes += accepted
        self.metrics.refused_bytes += reported - accepted
        self.metrics.freed_bytes += freed
        return Verdict(accepted, freed, tuple(found.refused), tuple(found.reasons))

    def _enter(self, span: PageRange, purpose: Purpose, found: _Sorted) -> None:
        """Enter a run of whole blocks, or those of its blocks that are in order."""
        if self._fault(span) is None:
            self._blocks.add(span, purpose)
            found.accepted.append((span.first_pfn, span.pages))
            return
        for first in range(span.first_pfn, span.first_pfn + span.pages, PAGES_PER_BLOCK):
            block = PageRange(first, PAGES_PER_BLOCK, span.node)
            why = self._fault(block)
            if why is None:
                self._blocks.add(block, purpose)
                found.accepted.append((first, PAGES_PER_BLOCK))
            else:
                found.refuse(block, why)

    def _fault(self, span: PageRange) -> Refusal | None:
        """Return what keeps whole blocks from being accepted; None if nothing does."""
        if self._pages.is_inhibited:
            return Refusal.INHIBITED
        address, size = span.first_pfn << PFN_SHIFT, span.size_bytes
        pieces = list(self._pages.memory.pieces(address, size))
        if sum(piece.length for piece in pieces) != size:
            return Refusal.NOT_RAM
        if any(whole_host_pages(piece)[1] != piece.length for piece in pieces):
            return Refusal.HOST_PAGES
        if self._pages.ledger.held(span.first_pfn, span.pages):
            return Refusal.KERNEL_HOLDS
        if self._blocks.touched(span.first_pfn, span.pages):
            return Refusal.HELD_ALREADY
        nodes = self._blocks.nodes | {span.node}
        return Refusal.TOO_MANY_NODES if len(nodes) > MAX_NODES else None

    def _give_back(self, runs: list[Run]) -> int:
        """Discard blocks, adjacent ones in one call; return how much less the host holds."""
        pieces = [
            piece
            for first, pages in _joined(runs)
            for piece in self._pages.memory.pieces(first << PFN_SHIFT, pages << PFN_SHIFT)
        ]
        files = {piece.region.file_id: piece.region.fd for piece in pieces}
        before = allocated_bytes(files.values())
        given = sum(map(self._pages.give_back, pieces))
        # The guest goes on meanwhile, so the difference may be off by what it touched.
        return min(max(before - allocated_bytes(files.values()), 0), given)

    def release(self, spans: Iterable[PageRange]) -> int:
        """Strike out what the agent has let go of; return how many bytes were in the book.

        Whole blocks go, even if only a part of one is named: the guest may use it again.
        """
        released = named = 0
        for span in spans:
            if span.pages > 0 and span.first_pfn >= 0:
                named += span.size_bytes
                released += self._strike(span.first_pfn, span.pages)
        self.metrics.released_bytes += released
        self.metrics.unknown_released_bytes += max(named - released, 0)
        return released

    def confirm(self, spans: Iterable[PageRange], *, is_last: bool) -> Ranges:
        """Take a part of what the agent says it holds, after it or the connection began anew.

        Returns:
            What of it is in the book, and so has been given back before.
        """
        if self._confirmed is None:
            self._confirmed = BlockSet()
        known = []
        for span in spans:
            if len(self._confirmed.nodes | {span.node}) > MAX_NODES:
                continue
            for part in self._blocks.known(span):
                if not self._confirmed.touched(part.first_pfn, part.pages):
                    self._confirmed.add(part, Purpose.HOLD)
                    known.append(part)
        if is_last:
            self.metrics.forgotten_bytes += self._blocks.size_bytes - self._confirmed.size_bytes
            self._blocks, self._confirmed = self._confirmed, None
        return tuple(known)

    def sweep_ended(self) -> None:
        """A sweep has ended, its blocks released: what is left is held, whatever it was taken for.

        The guest's kernel chooses which blocks go, and need not choose those that came last.
        """
        self._blocks.hold_all()

    # What else strikes blocks out ------------------------------------------------------------

    def kernel_took(self, first_pfn: int, pages: int) -> None:
        """Strike out the blocks of which the guest's kernel has handed over pages."""
        if self._blocks.size_bytes:
            self.metrics.contradicted_bytes += self._strike(first_pfn, pages)

    def _strike(self, first_pfn: int, pages: int) -> int:
        if self._confirmed is not None:
            self._confirmed.remove(first_pfn, pages)
        return self._blocks.remove(first_pfn, pages)

    def begin_session(self) -> None:
        """The agent's connection began anew: what it holds is not confirmed yet."""
        self._confirmed = None

    def forget(self) -> None:
        """Forget everything: perhaps the guest is new, or its memory is gone. The owner is told."""
        self.clear()
        self.on_forget()

    def clear(self) -> None:
        """Forget everything: the agent has said that its guest is new."""
        self.metrics.forgotten_bytes += self._blocks.size_bytes
        self._blocks, self._confirmed = BlockSet(), None
        self.presumed_bytes = 0

    # What is in it ---------------------------------------------------------------------------

    @property
    def hold_bytes(self) -> int:
        """How much the guest does without: what is held against a target."""
        return max(self.known_hold_bytes, self.presumed_bytes)

    @property
    def known_hold_bytes(self) -> int:
        """The same by the blocks that are in the book, whatever is presumed."""
        return self._blocks.bytes_for(Purpose.HOLD)

    @property
    def sweep_bytes(self) -> int:
        """How much a sweep has taken for the moment."""
        return self._blocks.bytes_for(Purpose.SWEEP)

    def by_node(self) -> dict[int, NodeHoldings]:
        """Return what is in the book of each node that the agent has named."""
        return self._blocks.by_node()

    def runs(self) -> Iterator[Run]:
        """Yield all pages in the book as sorted runs of 4 KiB page frames."""
        return self._blocks.runs()


def _misshapen(span: PageRange, blocks_left: int) -> Refusal | None:
    """Return what is wrong with a range wherever it is; None if nothing is."""
    if span.first_pfn % PAGES_PER_BLOCK or span.pages % PAGES_PER_BLOCK:
        return Refusal.NOT_BLOCKS
    if span.first_pfn < 0 or span.pages <= 0:
        return Refusal.NOT_BLOCKS
    return Refusal.TOO_MANY if span.pages // PAGES_PER_BLOCK > blocks_left else None


def _joined(runs: list[Run]) -> list[Run]:
    """Return disjoint runs sorted, with adjacent ones made one."""
    joined: list[Run] = []
    for first, count in sorted(runs):
        if joined and joined[-1][0] + joined[-1][1] == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((first, count))
    return joined

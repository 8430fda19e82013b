"""A set of 2 MiB blocks of guest memory, by purpose and NUMA node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ballast.balloon.ledger import Ledger
from ballast.balloon.ranges import Run
from ballast_protocol.guest_blocks import BLOCK_BYTES, PAGES_PER_BLOCK, PageRange, Purpose


@dataclass
class NodeHoldings:
    """What of one NUMA node is in a set, in bytes."""

    hold_bytes: int = 0
    sweep_bytes: int = 0


class BlockSet:
    """Blocks, each in it once. Pages are 4 KiB; a block counts as touched if any page of it is."""

    def __init__(self) -> None:
        self._all = Ledger()
        self._parts: dict[tuple[Purpose, int], Ledger] = {}
        self._end = 0

    @property
    def nodes(self) -> set[int]:
        """The nodes that have blocks in the set."""
        return {node for _, node in self._parts}

    @property
    def size_bytes(self) -> int:
        """All blocks of the set."""
        return self._all.count * BLOCK_BYTES

    def add(self, span: PageRange, purpose: Purpose) -> None:
        """Add whole blocks, none of which is in the set."""
        first, count = _blocks(span.first_pfn, span.pages)
        self._all.add(first, count)
        self._parts.setdefault((purpose, span.node), Ledger()).add(first, count)
        self._end = max(self._end, first + count)

    def touched(self, first_pfn: int, pages: int) -> bool:
        """Return whether any block that a run of pages touches is in the set."""
        first, count = _blocks(first_pfn, pages)
        return self._all.held(first, count) > 0

    def remove(self, first_pfn: int, pages: int) -> int:
        """Remove every block that a run of pages touches; return how many bytes of blocks went."""
        first, count = self._clip(*_blocks(first_pfn, pages))
        removed = self._all.remove(first, count)
        if removed:
            for key, part in list(self._parts.items()):
                part.remove(first, count)
                if not part.count:
                    del self._parts[key]
        return removed * BLOCK_BYTES

    def known(self, span: PageRange) -> Iterator[PageRange]:
        """Yield the parts of a range of whole blocks that are in the set, in order."""
        # Halved until each part is wholly in or wholly out: the work is bounded by what is here.
        waiting = [self._clip(*_blocks(span.first_pfn, span.pages))]
        while waiting:
            first, count = waiting.pop()
            held = self._all.held(first, count) if count > 0 else 0
            if held == count > 0:
                yield PageRange(first * PAGES_PER_BLOCK, count * PAGES_PER_BLOCK, span.node)
            elif held:
                half = count // 2
                waiting += [(first + half, count - half), (first, half)]

    def _clip(self, first: int, count: int) -> Run:
        """Leave out what lies beyond every block: naming it would cost a guest nothing."""
        return first, min(count, self._end - first)

    def hold_all(self) -> None:
        """Make `Purpose.HOLD` the purpose of every block."""
        for key, part in list(self._parts.items()):
            if key[0] is not Purpose.HOLD:
                del self._parts[key]
                held = self._parts.setdefault((Purpose.HOLD, key[1]), Ledger())
                for first, count in part.runs():
                    held.add(first, count)

    def bytes_for(self, purpose: Purpose) -> int:
        """Return how much was taken for one purpose."""
        blocks = sum(part.count for key, part in self._parts.items() if key[0] is purpose)
        return blocks * BLOCK_BYTES

    def by_node(self) -> dict[int, NodeHoldings]:
        """Return what there is of each node."""
        nodes: dict[int, NodeHoldings] = {}
        for (purpose, node), part in sorted(self._parts.items(), key=lambda item: item[0][1]):
            found = nodes.setdefault(node, NodeHoldings())
            if purpose is Purpose.HOLD:
                found.hold_bytes = part.count * BLOCK_BYTES
            else:
                found.sweep_bytes = part.count * BLOCK_BYTES
        return nodes

    def runs(self) -> Iterator[Run]:
        """Yield all pages as sorted runs of 4 KiB page frames."""
        for first, count in self._all.runs():
            yield first * PAGES_PER_BLOCK, count * PAGES_PER_BLOCK


def _blocks(first_pfn: int, pages: int) -> Run:
    """Return the blocks that a run of pages touches, as first number and count."""
    first = first_pfn // PAGES_PER_BLOCK
    return first, -(-(first_pfn + pages) // PAGES_PER_BLOCK) - first

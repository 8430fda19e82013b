"""The map of free memory: for each node and zone, which 2 MiB blocks may be free.

It is a memory of what was seen, not the truth: the guest goes on while it is looked at. It tells
where to look first for the blocks that the kernel has just given, which is most of the cost of
finding them; and which blocks can never be given, because of a hole or a border within them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ballast_agent.blocks.kernel import KPF_BUDDY, KPF_NOPAGE, MemorySpan, is_pool_page
from ballast_agent.procfs import ZoneInfo, ZoneKey
from ballast_protocol.guest_blocks import PAGES_PER_BLOCK

BLOCK_ORDER = 9
"""A block is 2^9 pages of 4 KiB."""

HOLE, UNKNOWN, FREE, USED, POOLED = range(5)
"""States of a block. A hole is what cannot become one: without memory, or not all in one zone."""


@dataclass
class ZoneMap:
    """The blocks of one zone.

    Attributes:
        node: Its node.
        zone: Its name.
        first_pfn: Page that the first block begins with, at or below the zone's first page.
        states: One for each block, the last one counted even if the zone ends within it.
    """

    node: int
    zone: str
    first_pfn: int
    states: bytearray

    @property
    def end_pfn(self) -> int:
        """The page after the last block."""
        return self.first_pfn + len(self.states) * PAGES_PER_BLOCK

    def blocks(self, state: int) -> Iterator[int]:
        """Yield the first page of every block in this state."""
        index = self.states.find(state)
        while index >= 0:
            yield self.first_pfn + index * PAGES_PER_BLOCK
            index = self.states.find(state, index + 1)


class FreeMap:
    """All zones of all nodes."""

    def __init__(self, zones: Mapping[ZoneKey, ZoneInfo], memory: Sequence[MemorySpan]) -> None:
        """Begin with knowing only where memory is.

        Args:
            zones: What `/proc/zoneinfo` says; zones of different nodes may enclose each other.
            memory: Where memory is, and on which node.
        """
        self._layout = _layout(zones)
        self.zones = [
            _zone_map(node, name, info, memory) for (node, name), info in sorted(zones.items())
        ]

    def is_of(self, zones: Mapping[ZoneKey, ZoneInfo]) -> bool:
        """Tell whether memory is still laid out like this: none was plugged, none taken offline."""
        return self._layout == _layout(zones)

    def candidates(self, node: int, known: Mapping[int, int]) -> Iterator[int]:
        """Yield the blocks of a node that may be in the pool by now, the likeliest first.

        Args:
            node: Which node.
            known: Blocks that are known to be in the pool; they are left out.
        """
        zones = [zone for zone in self.zones if zone.node == node]
        for state in (FREE, UNKNOWN, USED, POOLED):
            for zone in zones:
                # A copy, because what is found is noted while this goes on.
                yield from (pfn for pfn in list(zone.blocks(state)) if pfn not in known)

    def note(self, pfn: int, flags: int) -> None:
        """Remember what was seen of a block's first page."""
        for zone, index in self._find(pfn):
            zone.states[index] = self._state(zone, index, flags)

    def count(self, node: int, state: int) -> int:
        """Return how many blocks of a node are in a state, as far as is known."""
        return sum(zone.states.count(state) for zone in self.zones if zone.node == node)

    def _find(self, pfn: int) -> Iterator[tuple[ZoneMap, int]]:
        for zone in self.zones:
            index = (pfn - zone.first_pfn) // PAGES_PER_BLOCK
            if 0 <= index < len(zone.states) and zone.states[index] != HOLE:
                yield zone, index

    def _state(self, zone: ZoneMap, index: int, flags: int) -> int:
        if flags & KPF_NOPAGE:
            return UNKNOWN
        if is_pool_page(flags):
            return POOLED
        if flags & KPF_BUDDY:
            return FREE
        # The second half of a free 4 MiB block looks like nothing at all.
        second_half = (zone.first_pfn // PAGES_PER_BLOCK + index) % 2 == 1 and index > 0
        return FREE if not flags and second_half and zone.states[index - 1] == FREE else USED


def free_blocks(orders: Sequence[int]) -> int:
    """Return how many blocks a zone can give as it is, from its line in `/proc/buddyinfo`."""
    return sum(count << order for order, count in enumerate(orders[BLOCK_ORDER:]))


def _layout(zones: Mapping[ZoneKey, ZoneInfo]) -> dict[ZoneKey, tuple[int, int, int]]:
    return {key: (info.start_pfn, info.spanned, info.present) for key, info in zones.items()}


def _zone_map(node: int, name: str, info: ZoneInfo, memory: Sequence[MemorySpan]) -> ZoneMap:
    end = info.start_pfn + info.spanned
    first_pfn = info.start_pfn // PAGES_PER_BLOCK * PAGES_PER_BLOCK
    zone = ZoneMap(node, name, first_pfn, bytearray(-(-(end - first_pfn) // PAGES_PER_BLOCK)))
    for span in memory:
        if span.node is None or span.node == node:
            _mark(zone, max(span.first_pfn, info.start_pfn), min(span.end_pfn, end))
    return zone


def _mark(zone: ZoneMap, first_pfn: int, end_pfn: int) -> None:
    """Mark the blocks that lie wholly within a range as possible."""
    first = -(-(first_pfn - zone.first_pfn) // PAGES_PER_BLOCK)
    last = (end_pfn - zone.first_pfn) // PAGES_PER_BLOCK
    if first < last:
        zone.states[first:last] = bytes([UNKNOWN]) * (last - first)

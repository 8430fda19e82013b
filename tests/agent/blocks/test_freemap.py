from __future__ import annotations

import pytest

from ballast_agent.blocks.freemap import (
    FREE,
    HOLE,
    POOLED,
    UNKNOWN,
    USED,
    FreeMap,
    free_blocks,
)
from ballast_agent.blocks.kernel import KPF_BUDDY, KPF_NOPAGE, POOL_PAGE, MemorySpan
from ballast_agent.procfs import ZoneInfo, ZoneKey

B = 512
"""Pages in a block."""


def zone(first_pfn: int, end_pfn: int) -> ZoneInfo:
    spanned = end_pfn - first_pfn
    return ZoneInfo(0, 0, 0, spanned, spanned, spanned, first_pfn)


def blocks_of(map_: FreeMap, node: int) -> list[int]:
    return [pfn // B for pfn in map_.candidates(node, {})]


def test_a_zone_need_not_begin_or_end_at_a_block() -> None:
    """Its ends count as blocks, and can never be taken."""
    free = FreeMap({(0, "DMA"): zone(1, 2 * B + 100)}, [MemorySpan(1, 8 * B, 0)])
    (only,) = free.zones
    assert (only.first_pfn, only.end_pfn) == (0, 3 * B)
    assert list(only.states) == [HOLE, UNKNOWN, HOLE]


def test_holes_are_left_out() -> None:
    memory = [MemorySpan(0, 2 * B, 0), MemorySpan(3 * B + 1, 6 * B - 1, 0)]
    free = FreeMap({(0, "DMA32"): zone(0, 8 * B)}, memory)
    assert blocks_of(free, 0) == [0, 1, 4]


def test_a_border_between_zones_belongs_to_neither() -> None:
    middle = 2 * B + 7
    zones = {(0, "DMA32"): zone(0, middle), (0, "Normal"): zone(middle, 5 * B)}
    free = FreeMap(zones, [MemorySpan(0, 5 * B, 0)])
    assert blocks_of(free, 0) == [0, 1, 3, 4]


def test_zones_are_indexed_by_node_also_where_one_encloses_the_other() -> None:
    """Memory that was plugged into node 0 later lies beyond that of node 1."""
    zones: dict[ZoneKey, ZoneInfo] = {
        (0, "Normal"): zone(0, 8 * B),
        (1, "Normal"): zone(2 * B, 6 * B),
    }
    memory = [
        MemorySpan(0, 2 * B, 0),
        MemorySpan(2 * B, 6 * B, 1),
        MemorySpan(6 * B, 8 * B, 0),
    ]
    free = FreeMap(zones, memory)
    assert blocks_of(free, 0) == [0, 1, 6, 7]
    assert blocks_of(free, 1) == [2, 3, 4, 5]
    assert blocks_of(free, 2) == []


def test_memory_of_unknown_nodes_belongs_to_the_zone() -> None:
    free = FreeMap({(0, "Normal"): zone(B, 3 * B)}, [MemorySpan(0, 9 * B, None)])
    assert blocks_of(free, 0) == [1, 2]


def test_plugged_memory_makes_another_map() -> None:
    zones: dict[ZoneKey, ZoneInfo] = {(0, "Normal"): zone(0, 4 * B)}
    free = FreeMap(zones, [MemorySpan(0, 4 * B, 0)])
    assert free.is_of(dict(zones))
    assert not free.is_of({(0, "Normal"): zone(0, 6 * B)})
    assert not free.is_of({**zones, (0, "Movable"): zone(8 * B, 9 * B)})


def test_what_was_seen_is_looked_at_in_the_order_of_its_promise() -> None:
    free = FreeMap({(0, "Normal"): zone(0, 6 * B)}, [MemorySpan(0, 6 * B, 0)])
    free.note(0, 1 << 5)
    free.note(1 * B, 0)
    free.note(2 * B, KPF_BUDDY)
    free.note(3 * B, 0)
    free.note(4 * B, POOL_PAGE)
    assert blocks_of(free, 0) == [2, 3, 5, 0, 1, 4]
    assert [free.count(0, state) for state in (FREE, UNKNOWN, USED, POOLED)] == [2, 1, 2, 1]
    free.note(2 * B, KPF_NOPAGE)
    assert free.count(0, UNKNOWN) == 2
    assert [pfn // B for pfn in free.candidates(0, {3 * B: 0})] == [2, 5, 0, 1, 4]
    free.note(77 * B, KPF_BUDDY)


@pytest.mark.parametrize(
    ("orders", "blocks"),
    [((9,) * 9, 0), ((0,) * 9 + (3, 2), 7), ((0,) * 9 + (1,), 1), ((0,) * 10 + (1, 1), 6)],
)
def test_whole_blocks_are_counted_from_buddyinfo(orders: tuple[int, ...], blocks: int) -> None:
    assert free_blocks(orders) == blocks

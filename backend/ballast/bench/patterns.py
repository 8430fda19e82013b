"""The orders in which a guest names its pages, as PFN arrays of up to 256 entries."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from importlib import resources

ARRAY_PAGES = 256
"""`VIRTIO_BALLOON_ARRAY_PFNS_MAX` of Linux' driver."""

Arrays = list[list[int]]

RECORDING = "inflate-linux-6.12.json"
"""One gigabyte of a guest's memory, in use before: each array as [first PFN, count, step] parts."""


def descending(first: int, last: int) -> Arrays:
    """As Linux sends them after boot: each page is the one below the page before."""
    return _cut(range(last - 1, first - 1, -1))


def ascending(first: int, last: int) -> Arrays:
    """As Linux deflates."""
    return _cut(range(first, last))


def shuffled(first: int, last: int) -> Arrays:
    """Each array names adjacent pages in no order: the free lists of a guest that has run long."""
    choose = random.Random(1)
    arrays = _cut(range(first, last))
    for pfns in arrays:
        choose.shuffle(pfns)
    choose.shuffle(arrays)
    return arrays


def scattered(first: int, last: int) -> Arrays:
    """No page has a neighbour in its array, as a rule: nothing can be merged."""
    pfns = list(range(first, last))
    random.Random(1).shuffle(pfns)
    return _cut(pfns)


def every_second(first: int, last: int) -> Arrays:
    """Only pages with an even number: nothing can be merged either, and half is left."""
    return _cut(range(first, last, 2))


def single(first: int, last: int) -> Arrays:
    """One page for each array, as compaction moves ballooned pages; a sixteenth of the memory."""
    return [[pfn] for pfn in range(first, last, 16)]


def recorded(first: int, last: int) -> Arrays:
    """What a Debian guest sent in its order, shifted into this memory."""
    text = resources.files(__package__).joinpath("data", RECORDING).read_text()
    arrays = [list(_expand(parts)) for parts in json.loads(text)["arrays"]]
    lowest = min(map(min, arrays))
    shifted = ([pfn - lowest + first for pfn in pfns] for pfns in arrays)
    return [pfns for pfns in shifted if max(pfns) < last]


RECORDED = "recorded"

PATTERNS: dict[str, Callable[[int, int], Arrays]] = {
    "descending": descending,
    RECORDED: recorded,
    "ascending": ascending,
    "shuffled": shuffled,
    "scattered": scattered,
    "every-second": every_second,
    "single": single,
}
"""All that can be played: given the first page and the one behind the last."""


def compress(pfns: Iterable[int]) -> list[list[int]]:
    """Return one array as [first PFN, count, step] parts, which is how a recording keeps it."""
    parts: list[list[int]] = []
    for pfn in pfns:
        if parts and _goes_on(parts[-1], pfn):
            parts[-1][1] += 1
            parts[-1][2] = parts[-1][2] or pfn - parts[-1][0]
        else:
            parts.append([pfn, 1, 0])
    return parts


def _goes_on(part: list[int], pfn: int) -> bool:
    first, count, step = part
    return pfn - first in (1, -1) if count == 1 else pfn == first + count * step


def _expand(parts: Iterable[list[int]]) -> Iterator[int]:
    for first, count, step in parts:
        yield from (first + number * step for number in range(count))


def _cut(pfns: Iterable[int]) -> Arrays:
    ordered = list(pfns)
    return [ordered[at : at + ARRAY_PAGES] for at in range(0, len(ordered), ARRAY_PAGES)]

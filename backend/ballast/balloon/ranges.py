"""From arrays of page frame numbers to runs of adjacent pages."""

from __future__ import annotations

from collections.abc import Iterable

Run = tuple[int, int]
"""First page frame number, and how many pages."""


def merge(pfns: Iterable[int]) -> list[Run]:
    """Return the distinct pages as sorted runs, as few as possible.

    Linux inflates in strictly descending order, which sorting recognises in one pass, and nearly
    every one of its arrays is a single run: that case does not look at the pages one by one.
    """
    ordered = sorted(pfns)
    if not ordered:
        return []
    first, last = ordered[0], ordered[-1]
    if last - first + 1 == len(ordered) and len(set(ordered)) == len(ordered):
        return [(first, len(ordered))]
    runs: list[Run] = []
    start = previous = first
    for pfn in ordered:
        if pfn > previous + 1:
            runs.append((start, previous - start + 1))
            start = pfn
        previous = pfn
    runs.append((start, previous - start + 1))
    return runs

"""From arrays of page frame numbers to runs of adjacent pages."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache

Run = tuple[int, int]
"""First page frame number, and how many pages."""

_ENTRY_BITS = 32
_ENTRY_BYTES = 4
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1


def runs_of_array(data: bytes) -> list[Run]:
    """Return the distinct pages of a PFN array as sorted runs, as few as possible.

    Linux inflates in strictly descending order and deflates in ascending order, and most of its
    arrays are a single run. Such an array is known by one comparison: as one large number it is
    its first entry times (1, 1, 1, ...), minus or plus (0, 1, 2, ...).

    Args:
        data: Little-endian 32-bit page frame numbers; a trailing piece of an entry is ignored.
    """
    count = len(data) // _ENTRY_BYTES
    if not count:
        return []
    whole = int.from_bytes(data[: count * _ENTRY_BYTES], "little")
    first = whole & _ENTRY_MASK
    ones, ramp = _shapes(count)
    # The bounds make each digit of the expected number a digit: no borrow, no carry.
    if first >= count - 1 and whole == first * ones - ramp:
        return [(first - count + 1, count)]
    if first + count - 1 <= _ENTRY_MASK and whole == first * ones + ramp:
        return [(first, count)]
    return merge(struct.unpack_from(f"<{count}I", data))


@lru_cache(maxsize=64)
def _shapes(count: int) -> tuple[int, int]:
    """Return (1, 1, 1, ...) and (0, 1, 2, ...) as numbers with `count` 32-bit digits."""
    ones = struct.pack(f"<{count}I", *([1] * count))
    ramp = struct.pack(f"<{count}I", *range(count))
    return int.from_bytes(ones, "little"), int.from_bytes(ramp, "little")


def merge(pfns: Iterable[int]) -> list[Run]:
    """Return the distinct pages as sorted runs, as few as possible.

    Adjacent pages in any order are recognised without a look at each of them.
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


def join(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield runs from several arrays sorted, those that touch or overlap as one."""
    pending: Run | None = None
    for first, count in sorted(runs):
        if pending is None:
            pending = (first, count)
        elif first <= pending[0] + pending[1]:
            pending = (pending[0], max(pending[1], first + count - pending[0]))
        else:
            yield pending
            pending = (first, count)
    if pending is not None:
        yield pending

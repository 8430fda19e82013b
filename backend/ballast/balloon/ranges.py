"""From arrays of page frame numbers to runs of adjacent pages."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

Run = tuple[int, int]
"""First page frame number, and how many pages."""

_ENTRY_BITS = 32
_ENTRY_BYTES = 4
_ENTRY_MASK = (1 << _ENTRY_BITS) - 1
_ENTRY = struct.Struct("<I")

_CARRIES = b"\xff" * _ENTRY_BYTES
"""In an array where an entry is all ones, and in few others."""

_MAX_PARTS = 8
"""Up to here stretches are found faster than entries are sorted."""


def runs_of_array(data: bytes) -> list[Run]:
    """Return the distinct pages of a PFN array as sorted runs, as few as possible.

    Linux inflates in descending order and deflates in ascending order, and most of its arrays are a
    single run. Such an array is known by one comparison: as one large number it is its first entry
    times (1, 1, 1, ...), minus or plus (0, 1, 2, ...). Nearly all others are two or three runs.

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
    parts = _parts(data, whole, count) if count > 2 and _CARRIES not in data else None
    return merge(struct.unpack_from(f"<{count}I", data)) if parts is None else list(join(parts))


def _parts(data: bytes, whole: int, count: int) -> list[Run] | None:
    """Return the adjacent stretches of an array in its own order; None if there are many.

    Two neighbours are adjacent where the one and the other plus one have no bit that differs. Added
    up and compared as large numbers, all of them are; no entry may be all ones, lest it carry.
    """
    ones, _ = _shapes(count - 1)
    before, after = whole & (1 << _ENTRY_BITS * (count - 1)) - 1, whole >> _ENTRY_BITS
    is_descending = before & _ENTRY_MASK > after & _ENTRY_MASK
    differing = (after + ones) ^ before if is_descending else (before + ones) ^ after
    parts: list[Run] = []
    start = 0
    while differing:
        if len(parts) == _MAX_PARTS:
            return None
        same = ((differing & -differing).bit_length() - 1) // _ENTRY_BITS
        parts.append(_part(data, start, start + same))
        start += same + 1
        differing >>= _ENTRY_BITS * (same + 1)
    parts.append(_part(data, start, count - 1))
    return parts


def _part(data: bytes, start: int, end: int) -> Run:
    """Return the run between two entries, both included."""
    ends = [_ENTRY.unpack_from(data, at * _ENTRY_BYTES)[0] for at in (start, end)]
    return min(ends), end - start + 1


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
    gaps = [(below, above) for below, above in pairwise(ordered) if above > below + 1]
    starts = [first, *(above for _, above in gaps)]
    ends = [*(below for below, _ in gaps), last]
    return [(start, end - start + 1) for start, end in zip(starts, ends, strict=True)]


def join(runs: Sequence[Run]) -> Sequence[Run]:
    """Return runs from several arrays sorted, those that touch or overlap as one."""
    if len(runs) < 2:
        return runs
    ordered = sorted(runs)
    joined: list[Run] = []
    start = end = ordered[0][0]
    for first, count in ordered:
        if first > end:
            joined.append((start, end - start))
            start, end = first, first + count
        elif first + count > end:
            end = first + count
    joined.append((start, end - start))
    return joined

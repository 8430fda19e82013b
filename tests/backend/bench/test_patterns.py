from __future__ import annotations

import pytest

from ballast.balloon.ranges import merge
from ballast.bench.patterns import ARRAY_PAGES, PATTERNS, RECORDED, compress

FIRST, LAST = 512, 512 + 4096
SHARE = {"every-second": 2, "single": 16}


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != RECORDED])
def test_a_pattern_names_each_of_its_pages_once(name: str) -> None:
    arrays = PATTERNS[name](FIRST, LAST)
    pfns = [pfn for array in arrays for pfn in array]
    assert len(set(pfns)) == len(pfns) == (LAST - FIRST) // SHARE.get(name, 1)
    assert min(pfns) == FIRST
    assert max(pfns) < LAST
    assert all(len(array) <= ARRAY_PAGES for array in arrays)


def test_only_some_patterns_can_be_merged() -> None:
    runs = {name: sum(map(len, map(merge, PATTERNS[name](FIRST, LAST)))) for name in PATTERNS}
    assert runs["descending"] == runs["ascending"] == runs["shuffled"] == 16
    assert runs["every-second"] == 2048
    assert runs["scattered"] > 3500


def test_the_recording_is_a_gibibyte_of_a_real_guest() -> None:
    arrays = PATTERNS[RECORDED](FIRST, FIRST + (2 << 18))
    pfns = {pfn for array in arrays for pfn in array}
    assert len(pfns) == 1 << 18
    runs = sum(len(merge(array)) for array in arrays) / len(arrays)
    assert 1 < runs < 4


@pytest.mark.parametrize(
    ("pfns", "parts"),
    [
        ([], []),
        ([7], [[7, 1, 0]]),
        ([7, 8, 9, 20], [[7, 3, 1], [20, 1, 0]]),
        ([9, 8, 7, 8, 9], [[9, 3, -1], [8, 2, 1]]),
        ([1, 3, 5], [[1, 1, 0], [3, 1, 0], [5, 1, 0]]),
    ],
)
def test_a_recording_keeps_runs(pfns: list[int], parts: list[list[int]]) -> None:
    assert compress(pfns) == parts

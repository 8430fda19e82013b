import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.balloon.ranges import join, merge, runs_of_array

PFNS = st.lists(st.integers(min_value=0, max_value=300), max_size=200)


def test_nothing_merges_to_nothing() -> None:
    assert merge([]) == []


def test_descending_array_of_linux_is_one_run() -> None:
    assert merge(range(1255, 999, -1)) == [(1000, 256)]


def test_gap_splits() -> None:
    assert merge([5, 1, 2, 7, 6]) == [(1, 2), (5, 3)]


def test_duplicates_count_once_even_where_the_length_would_fit_one_run() -> None:
    assert merge([1, 1, 4, 4]) == [(1, 1), (4, 1)]


@given(PFNS)
def test_no_page_is_lost_and_none_comes_twice(pfns: list[int]) -> None:
    runs = merge(pfns)
    pages = [page for first, count in runs for page in range(first, first + count)]
    assert pages == sorted(set(pfns))


@given(PFNS)
def test_runs_are_as_few_as_possible(pfns: list[int]) -> None:
    runs = merge(pfns)
    for (first, count), (following, _) in pairwise(runs):
        assert first + count < following


def pack(pfns: list[int]) -> bytes:
    return struct.pack(f"<{len(pfns)}I", *pfns)


TOP = (1 << 32) - 1


@pytest.mark.parametrize(
    "pfns",
    [
        [],
        [0],
        [TOP],
        list(range(1000, 744, -1)),
        list(range(744, 1000)),
        list(range(255, -1, -1)),
        list(range(TOP - 255, TOP + 1)),
        # What one large number could take for a descending or an ascending array.
        [1, 0, TOP],
        [0, TOP, TOP - 1],
        [TOP, 0, 2],
        [TOP - 1, TOP, 0],
        [5, 5, 5],
        [9, 8, 7, 9],
    ],
)
def test_an_array_is_what_its_entries_say(pfns: list[int]) -> None:
    assert runs_of_array(pack(pfns)) == merge(pfns)
    assert runs_of_array(pack(pfns) + b"\x01\x02\x03") == merge(pfns)


@given(st.lists(st.integers(0, 40) | st.integers(TOP - 40, TOP), max_size=64))
def test_any_array_is_what_its_entries_say(pfns: list[int]) -> None:
    assert runs_of_array(pack(pfns)) == merge(pfns)


@st.composite
def stretches(draw: st.DrawFn) -> list[int]:
    """Draw what a guest with some free memory names: a few stretches, up or down."""
    first = draw(st.integers(0, 90) | st.integers(TOP - 90, TOP))
    pages = range(first, min(first + draw(st.integers(1, 12)), TOP + 1))
    return list(pages if draw(st.booleans()) else reversed(pages))


@given(st.lists(stretches(), max_size=12))
def test_an_array_of_stretches_is_what_its_entries_say(parts: list[list[int]]) -> None:
    pfns = [pfn for part in parts for pfn in part]
    assert runs_of_array(pack(pfns)) == merge(pfns)


@given(st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=6))
def test_joined_runs_are_those_of_all_pages(arrays: list[list[int]]) -> None:
    runs = [run for pfns in arrays for run in merge(pfns)]
    assert list(join(runs)) == merge(pfn for pfns in arrays for pfn in pfns)

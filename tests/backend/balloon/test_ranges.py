from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ballast.balloon.ranges import merge

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

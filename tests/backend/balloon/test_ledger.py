import os

from hypothesis import given
from hypothesis import strategies as st

from ballast.balloon.ledger import CHUNK_PAGES, Ledger
from ballast.state.bitmap import SharedChunks

RUN = st.tuples(
    st.integers(min_value=0, max_value=3 * CHUNK_PAGES) | st.integers(min_value=0, max_value=40),
    st.just(1) | st.integers(min_value=1, max_value=300),
)
STEP = st.tuples(st.sampled_from(["add", "remove"]), RUN)


def pages_of(ledger: Ledger) -> set[int]:
    return {page for first, count in ledger.runs() for page in range(first, first + count)}


@given(st.lists(STEP, max_size=40))
def test_it_is_a_set_of_pages(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ledger, model = Ledger(), set[int]()
    for action, (first, count) in steps:
        run = set(range(first, first + count))
        if action == "add":
            assert ledger.add(first, count) == len(run - model)
            model |= run
        else:
            assert ledger.remove(first, count) == len(run & model)
            model -= run
        assert ledger.held(first, count) == len(model & run)
    assert ledger.count == len(model)
    assert pages_of(ledger) == model


def test_runs_join_across_chunks() -> None:
    ledger = Ledger()
    ledger.add(CHUNK_PAGES - 2, 2)
    ledger.add(CHUNK_PAGES, 3)
    assert list(ledger.runs()) == [(CHUNK_PAGES - 2, 5)]


def test_runs_are_sorted_whatever_the_order_of_entry() -> None:
    ledger = Ledger()
    for first in (5 * CHUNK_PAGES, 7, CHUNK_PAGES + 1, 0):
        ledger.add(first, 1)
    assert list(ledger.runs()) == [(0, 1), (7, 1), (CHUNK_PAGES + 1, 1), (5 * CHUNK_PAGES, 1)]


def test_clear_forgets_everything() -> None:
    ledger = Ledger()
    ledger.add(3, 100)
    ledger.clear()
    assert (ledger.count, list(ledger.runs())) == (0, [])


def test_removing_what_was_never_there_costs_nothing() -> None:
    ledger = Ledger()
    assert ledger.remove(1 << 40, 1 << 20) == 0
    assert ledger.count == 0


@given(st.lists(STEP, max_size=40))
def test_a_successor_has_the_same_book(steps: list[tuple[str, tuple[int, int]]]) -> None:
    chunks = SharedChunks()
    try:
        kept, own = Ledger(chunks), Ledger()
        for action, run in steps:
            for ledger in (kept, own):
                ledger.add(*run) if action == "add" else ledger.remove(*run)
        after = Ledger(SharedChunks(os.dup(chunks.fd)))
        assert list(after.runs()) == list(own.runs()) == list(kept.runs())
        assert after.count == own.count == kept.count
        after.clear()
        assert after.count == 0
        assert list(after.runs()) == []
    finally:
        chunks.close()

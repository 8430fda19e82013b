"""Blocks of the agent's on real memory: what is accepted is gone, and nothing else is."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.balloon.blocks import MAX_NODES, Refusal
from ballast.memory.map import Piece
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    MAX_REPORT_BLOCKS,
    PAGES_PER_BLOCK,
    PageRange,
    Purpose,
)
from support.blocks import Books, span
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.memory import mapped

LOW_BLOCKS, HIGH_BLOCKS = 6, 4
HIGH = 16
"""Number of the first block above the hole."""
HALF_BLOCK = HIGH + HIGH_BLOCKS
"""Number of a block of which only the first half is RAM."""


@pytest.fixture
def books() -> Iterator[Books]:
    low = RamBlock(0, LOW_BLOCKS * BLOCK_BYTES)
    high = RamBlock(HIGH * BLOCK_BYTES, HIGH_BLOCKS * BLOCK_BYTES + BLOCK_BYTES // 2)
    with GuestRam.of(low, high) as ram:
        books = Books(ram)
        with mapped(ram) as books.pages.memory:
            yield books


def test_a_report_is_entered_and_given_back(books: Books) -> None:
    books.fill(*range(LOW_BLOCKS))
    verdict = books.blocks.report([span(1, 2), span(4)], Purpose.HOLD)
    assert verdict.accepted_bytes == verdict.freed_bytes == 3 * BLOCK_BYTES
    assert verdict.refused == ()
    assert [books.is_empty(block) for block in range(LOW_BLOCKS)] == [
        *(False, True, True, False, True, False)
    ]
    assert books.held() == {1, 2, 4}
    assert books.blocks.hold_bytes == 3 * BLOCK_BYTES


def test_adjacent_ranges_are_discarded_in_one_call(books: Books) -> None:
    books.blocks.report([span(1), span(2, 2), span(5)], Purpose.HOLD)
    assert books.discards == [(1, 3), (5, 1)]


def test_a_batch_never_spans_two_regions(books: Books) -> None:
    low, high = RamBlock(0, 2 * BLOCK_BYTES), RamBlock(2 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    with GuestRam.of(low, high) as ram:
        two = Books(ram)
        with mapped(ram) as two.pages.memory:
            two.blocks.report([span(0, 4)], Purpose.HOLD)
    assert two.discards == [(0, 2), (2, 2)]


def test_what_the_guest_never_used_frees_nothing(books: Books) -> None:
    books.fill(0)
    verdict = books.blocks.report([span(0, 3)], Purpose.HOLD)
    assert (verdict.accepted_bytes, verdict.freed_bytes) == (3 * BLOCK_BYTES, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (PageRange(1, PAGES_PER_BLOCK, 0), Refusal.NOT_BLOCKS),
        (PageRange(0, PAGES_PER_BLOCK + 1, 0), Refusal.NOT_BLOCKS),
        (PageRange(0, 0, 0), Refusal.NOT_BLOCKS),
        (PageRange(0, -PAGES_PER_BLOCK, 0), Refusal.NOT_BLOCKS),
        (PageRange(-PAGES_PER_BLOCK, PAGES_PER_BLOCK, 0), Refusal.NOT_BLOCKS),
        (span(0, MAX_REPORT_BLOCKS + 1), Refusal.TOO_MANY),
        (span(LOW_BLOCKS), Refusal.NOT_RAM),
        (span(HALF_BLOCK), Refusal.NOT_RAM),
        (span(1 << 45), Refusal.NOT_RAM),
    ],
)
def test_what_is_not_in_order_is_refused_and_kept(
    books: Books, bad: PageRange, why: Refusal
) -> None:
    books.fill(*range(LOW_BLOCKS))
    verdict = books.blocks.report([bad, span(1)], Purpose.HOLD)
    assert verdict.refused == (bad,)
    assert verdict.reasons == (why,)
    assert verdict.accepted_bytes == BLOCK_BYTES
    assert books.held() == {1}
    assert not books.is_empty(0)


def test_the_good_blocks_of_a_range_are_taken(books: Books) -> None:
    verdict = books.blocks.report([span(LOW_BLOCKS - 2, 4)], Purpose.HOLD)
    assert verdict.refused == (span(LOW_BLOCKS), span(LOW_BLOCKS + 1))
    assert books.held() == {LOW_BLOCKS - 2, LOW_BLOCKS - 1}


def test_a_report_of_too_much_in_many_ranges_is_cut(books: Books) -> None:
    many = [span(1 << 20) for _ in range(MAX_REPORT_BLOCKS)]
    verdict = books.blocks.report([*many, span(0)], Purpose.HOLD)
    assert Refusal.TOO_MANY in verdict.reasons
    assert books.held() == set()


def test_a_block_of_the_kernel_s_is_refused(books: Books) -> None:
    books.fill(0, 1)
    books.pages.ledger.add(PAGES_PER_BLOCK + 7, 1)
    verdict = books.blocks.report([span(0, 2)], Purpose.HOLD)
    assert verdict.refused == (span(1),)
    assert verdict.reasons == (Refusal.KERNEL_HOLDS,)
    assert books.is_empty(0)
    assert not books.is_empty(1)


def test_a_page_that_the_kernel_hands_over_strikes_its_block_out(books: Books) -> None:
    books.blocks.report([span(0, 3)], Purpose.HOLD)
    books.blocks.kernel_took(PAGES_PER_BLOCK + 3, 1)
    assert books.held() == {0, 2}
    assert books.blocks.metrics.contradicted_bytes == BLOCK_BYTES


def test_a_block_is_taken_once(books: Books) -> None:
    books.blocks.report([span(2)], Purpose.SWEEP)
    verdict = books.blocks.report([span(1, 2)], Purpose.HOLD)
    assert verdict.refused == (span(2),)
    assert verdict.reasons == (Refusal.HELD_ALREADY,)
    assert len(books.discards) == 2
    twice = books.blocks.report([span(3), span(3)], Purpose.HOLD)
    assert twice.refused == (span(3),)


def test_released_blocks_leave_the_book(books: Books) -> None:
    books.blocks.report([span(0, 4)], Purpose.HOLD)
    assert books.blocks.release([span(1), span(3, 2)]) == 2 * BLOCK_BYTES
    assert books.held() == {0, 2}
    assert books.blocks.metrics.unknown_released_bytes == BLOCK_BYTES
    assert len(books.discards) == 1
    books.fill(1)
    assert books.blocks.report([span(1)], Purpose.HOLD).freed_bytes == BLOCK_BYTES


def test_a_part_of_a_block_that_is_released_takes_the_block_along(books: Books) -> None:
    books.blocks.report([span(0, 2)], Purpose.HOLD)
    books.blocks.release([PageRange(PAGES_PER_BLOCK - 1, 1, 0)])
    assert books.held() == {1}


def test_releasing_what_cannot_be_costs_nothing(books: Books) -> None:
    books.blocks.report([span(0)], Purpose.HOLD)
    books.blocks.release([PageRange(0, -1, 0), PageRange(-8, 1, 0), span(1 << 31, 1 << 31)])
    assert books.held() == {0}
    books.blocks.release([span(0, 1 << 31)])
    assert books.held() == set()


def test_purposes_and_nodes_are_told_apart(books: Books) -> None:
    books.blocks.report([span(0, 2, node=0), span(HIGH, 1, node=1)], Purpose.HOLD)
    books.blocks.report([span(HIGH + 1, 2, node=1)], Purpose.SWEEP)
    assert books.blocks.hold_bytes == 3 * BLOCK_BYTES
    assert books.blocks.sweep_bytes == 2 * BLOCK_BYTES
    nodes = books.blocks.by_node()
    assert list(nodes) == [0, 1]
    assert (nodes[1].hold_bytes, nodes[1].sweep_bytes) == (BLOCK_BYTES, 2 * BLOCK_BYTES)
    books.blocks.release([span(HIGH, 3, node=1)])
    assert list(books.blocks.by_node()) == [0]


def test_a_guest_cannot_make_nodes_without_end() -> None:
    with GuestRam.of(RamBlock(0, (MAX_NODES + 2) * BLOCK_BYTES)) as ram:
        books = Books(ram)
        with mapped(ram) as books.pages.memory:
            for number in range(MAX_NODES):
                assert not books.blocks.report([span(number, 1, number)], Purpose.HOLD).refused
            verdict = books.blocks.report([span(MAX_NODES, 1, MAX_NODES)], Purpose.HOLD)
            assert verdict.reasons == (Refusal.TOO_MANY_NODES,)
            assert not books.blocks.report([span(MAX_NODES, 1, 0)], Purpose.HOLD).refused
            known = books.blocks.confirm(
                [span(number, 1, 1000 + number) for number in range(MAX_NODES + 1)], is_last=True
            )
            assert len(known) == MAX_NODES


def test_host_pages_larger_than_a_block_are_left_alone(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    for region in books.pages.memory.regions:
        monkeypatch.setattr(region, "host_page_bytes", 1 << 30)
    verdict = books.blocks.report([span(0)], Purpose.HOLD)
    assert verdict.reasons == (Refusal.HOST_PAGES,)


def test_nothing_is_taken_while_nothing_is_given_back(books: Books) -> None:
    books.fill(0)
    books.pages.is_inhibited = True
    verdict = books.blocks.report([span(0)], Purpose.HOLD)
    assert verdict.reasons == (Refusal.INHIBITED,)
    assert not books.is_empty(0)


def test_a_failure_to_discard_is_seen(books: Books) -> None:
    def fail(_piece: Piece) -> int:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    books.pages._discard = fail
    verdict = books.blocks.report([span(0)], Purpose.HOLD)
    assert (verdict.accepted_bytes, verdict.freed_bytes) == (BLOCK_BYTES, 0)
    assert "no holes here" in books.pages.last_failure


# An agent that begins anew


def test_what_is_confirmed_stays_and_the_rest_is_forgotten(books: Books) -> None:
    books.blocks.report([span(0, 6)], Purpose.HOLD)
    books.blocks.begin_session()
    assert books.blocks.confirm([span(0), span(2, 2, node=1)], is_last=False) == (
        *(span(0), span(2, 2, node=1)),
    )
    assert books.held() == set(range(6))
    assert books.blocks.confirm([span(5), span(HIGH)], is_last=True) == (span(5),)
    assert books.held() == {0, 2, 3, 5}
    assert books.blocks.by_node()[1].hold_bytes == 2 * BLOCK_BYTES
    assert books.blocks.metrics.forgotten_bytes == 2 * BLOCK_BYTES
    assert len(books.discards) == 1


def test_a_swept_block_that_is_confirmed_is_held(books: Books) -> None:
    books.blocks.report([span(0)], Purpose.SWEEP)
    books.blocks.confirm([span(0)], is_last=True)
    assert (books.blocks.hold_bytes, books.blocks.sweep_bytes) == (BLOCK_BYTES, 0)


def test_an_agent_that_holds_nothing_clears_the_book(books: Books) -> None:
    books.blocks.report([span(0)], Purpose.HOLD)
    assert books.blocks.confirm([], is_last=True) == ()
    assert books.held() == set()


def test_a_session_that_breaks_off_confirms_nothing(books: Books) -> None:
    books.blocks.report([span(0, 2)], Purpose.HOLD)
    books.blocks.confirm([span(0)], is_last=False)
    books.blocks.begin_session()
    books.blocks.confirm([span(1)], is_last=True)
    assert books.held() == {1}


def test_what_is_released_while_it_is_confirmed_is_gone(books: Books) -> None:
    books.blocks.report([span(0, 3)], Purpose.HOLD)
    books.blocks.confirm([span(0, 3)], is_last=False)
    books.blocks.release([span(0)])
    books.blocks.kernel_took(PAGES_PER_BLOCK, 1)
    books.blocks.confirm([], is_last=True)
    assert books.held() == {2}


def test_clear_forgets_everything(books: Books) -> None:
    books.blocks.report([span(0, 2)], Purpose.HOLD)
    books.blocks.clear()
    assert books.held() == set()
    assert books.blocks.metrics.forgotten_bytes == 2 * BLOCK_BYTES
    assert not books.blocks.report([span(0, 2)], Purpose.HOLD).refused


BLOCK = st.integers(min_value=0, max_value=LOW_BLOCKS)
STEP = st.one_of(
    st.tuples(st.sampled_from(["hold", "sweep", "release"]), BLOCK, st.integers(1, 3)),
    st.tuples(st.just("kernel"), BLOCK, st.just(1)),
    st.tuples(st.just("confirm"), BLOCK, st.integers(1, 6)),
)


@given(steps=st.lists(STEP, max_size=30))
@settings(deadline=None)
def test_the_book_is_a_set_of_blocks(steps: list[tuple[str, int, int]]) -> None:
    with GuestRam.of(RamBlock(0, LOW_BLOCKS * BLOCK_BYTES)) as ram:
        books = Books(ram)
        with mapped(ram) as books.pages.memory:
            model = set[int]()
            for action, first, count in steps:
                named = set(range(first, first + count))
                if action in ("hold", "sweep"):
                    fresh = {block for block in named - model if block < LOW_BLOCKS}
                    verdict = books.blocks.report([span(first, count)], Purpose(action))
                    assert verdict.accepted_bytes == len(fresh) * BLOCK_BYTES
                    model |= fresh
                elif action == "release":
                    books.blocks.release([span(first, count)])
                    model -= named
                elif action == "kernel":
                    books.blocks.kernel_took(first * PAGES_PER_BLOCK + 5, 1)
                    model -= named
                else:
                    known = books.blocks.confirm([span(first, count)], is_last=True)
                    model &= named
                    assert sum(each.size_bytes for each in known) == len(model) * BLOCK_BYTES
                assert books.held() == model
                assert books.blocks.hold_bytes + books.blocks.sweep_bytes == (
                    len(model) * BLOCK_BYTES
                )
            assert PAGE_SIZE * sum(count for _, count in books.blocks.runs()) == (
                len(model) * BLOCK_BYTES
            )

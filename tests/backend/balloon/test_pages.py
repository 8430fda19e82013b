"""Inflate, deflate and report on real memory: exactly the right pages go, and no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.pages import MAX_ARRAY_BYTES, PageBook
from ballast.memory.map import Piece
from ballast.memory.reclaim_many import best_discard_many, can_discard_many, discard_many
from ballast.queue.chain import Buffer, Chain
from ballast_protocol.errors import AddressError, QueueError
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.memory import mapped
from support.pages import SCRATCH, Book, MarkedPages, pfn_array

SMALL = 32 * PAGE_SIZE
SECOND, AFTER_HOLE = SMALL, 4 * SMALL
HUGE = 2 << 20
HUGE_PAGES = HUGE // PAGE_SIZE


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """Return two adjacent blocks, a hole, and a block that starts inside its file."""
    blocks = (
        RamBlock(0, SMALL),
        RamBlock(SECOND, SMALL),
        RamBlock(AFTER_HOLE, SMALL, file_offset=3 * PAGE_SIZE),
        SCRATCH,
    )
    with GuestRam.of(*blocks) as ram:
        yield ram


@pytest.fixture(params=["one by one", "many at once"])
def book(ram: GuestRam, request: pytest.FixtureRequest) -> Iterator[Book]:
    is_many = request.param == "many at once"
    if is_many and not can_discard_many():
        pytest.skip("the kernel cannot discard many pieces at once: it needs Linux 6.13")
    metrics = BalloonMetrics()
    book = PageBook(metrics, discard_many=discard_many if is_many else None)
    with mapped(ram) as book.memory:
        yield Book(ram, book, metrics)


@pytest.fixture
def marked(ram: GuestRam) -> MarkedPages:
    small = range(SMALL // PAGE_SIZE)
    starts = (0, SECOND, AFTER_HOLE)
    return MarkedPages(ram, [start // PAGE_SIZE + page for start in starts for page in small])


LAST_OF_FIRST = SMALL // PAGE_SIZE - 1
IN_HOLE = AFTER_HOLE // PAGE_SIZE - 1
THIRD = AFTER_HOLE // PAGE_SIZE


@pytest.mark.parametrize(
    "pfns",
    [
        [5],
        [9, 8, 7, 6],
        [3, 17, 4, 30],
        [LAST_OF_FIRST, LAST_OF_FIRST + 1],
        [THIRD, THIRD + 1, THIRD + 31],
        list(range(64)),
    ],
)
def test_exactly_the_inflated_pages_go(
    book: Book, ram: GuestRam, marked: MarkedPages, pfns: list[int]
) -> None:
    chain = book.chain(pfns)
    before = ram.resident_bytes()
    assert book.book.inflate(book.book.read(chain)) == len(pfns) * PAGE_SIZE
    assert before - ram.resident_bytes() == len(pfns) * PAGE_SIZE
    assert marked.gone() == set(pfns) == book.held()
    assert marked.lost(allowed=pfns) == set()
    assert book.metrics.inflate_pages == len(pfns)


def test_adjacent_pages_go_in_one_call_but_never_across_regions(book: Book) -> None:
    book.inflate(*range(64))
    assert book.metrics.discard_calls == 2


def test_a_page_given_twice_is_in_the_book_once(book: Book, marked: MarkedPages) -> None:
    book.inflate(4, 4, 4)
    assert (book.book.ledger.count, book.metrics.pages_inflated_twice) == (1, 0)
    book.inflate(3, 4)
    assert (book.book.ledger.count, book.metrics.pages_inflated_twice) == (2, 1)
    assert marked.gone() == {3, 4}


def test_pages_that_are_not_ram_are_counted_and_left_out(book: Book, marked: MarkedPages) -> None:
    book.inflate(IN_HOLE, THIRD, 2, 0xFFFFFFFF)
    assert marked.gone() == {THIRD, 2} == book.held()
    assert book.metrics.pages_not_ram == 2


def test_what_follows_the_last_whole_entry_is_ignored(book: Book, marked: MarkedPages) -> None:
    book.book.inflate(book.book.read(book.chain([7], tail=b"\x01\x00\x00")))
    assert marked.gone() == {7}


def test_a_buffer_in_several_parts_is_one_array(book: Book, marked: MarkedPages) -> None:
    book.chain([6, 7])
    at = SCRATCH.guest_address
    book.book.inflate(book.book.read(Chain(0, (Buffer(at, 2), Buffer(at + 2, 6)), ())))
    assert marked.gone() == {6, 7}


def test_an_array_longer_than_any_driver_s_is_refused(book: Book, marked: MarkedPages) -> None:
    too_long = Chain(0, (Buffer(SCRATCH.guest_address, MAX_ARRAY_BYTES + 4),), ())
    with pytest.raises(QueueError, match="PFN array"):
        book.book.read(too_long)
    assert marked.gone() == set()


def test_an_array_that_is_not_in_ram_changes_nothing(book: Book, marked: MarkedPages) -> None:
    with pytest.raises(AddressError):
        book.book.inflate(book.book.read(Chain(0, (Buffer(IN_HOLE * PAGE_SIZE, 8),), ())))
    assert (marked.gone(), book.held()) == (set(), set())


def test_deflate_strikes_out_and_touches_no_memory(book: Book, marked: MarkedPages) -> None:
    book.inflate(1, 2, 3)
    marked.mark([2])  # a guest that does not wait
    book.deflate(2, 3, 20)
    assert book.held() == {1}
    assert marked.gone() == {1, 3}
    assert (book.metrics.deflate_pages, book.metrics.pages_not_inflated) == (2, 1)


def test_compaction_moves_a_page_by_new_before_old(book: Book, marked: MarkedPages) -> None:
    book.inflate(10)
    book.inflate(11)
    book.deflate(10)
    marked.mark([10])
    assert book.held() == {11}
    assert marked.lost(allowed=[11]) == set()


def test_a_guest_may_give_up_the_very_page_with_its_array(book: Book) -> None:
    at = 5 * PAGE_SIZE
    book.ram.write(at, pfn_array([5]))
    runs = book.book.read(Chain(0, (Buffer(at, 4),), ()))
    assert book.book.inflate(runs) == PAGE_SIZE
    assert book.ram.read(at, 4) == bytes(4)


# Reporting


def test_reported_memory_goes_and_stays_out_of_the_book(book: Book, marked: MarkedPages) -> None:
    assert book.book.report(Buffer(2 * PAGE_SIZE, 3 * PAGE_SIZE)) == 3 * PAGE_SIZE
    assert marked.gone() == {2, 3, 4}
    assert marked.lost(allowed=[2, 3, 4]) == set()
    assert (book.held(), book.metrics.reported_bytes) == (set(), 3 * PAGE_SIZE)


def test_a_report_may_span_adjacent_regions(book: Book, marked: MarkedPages) -> None:
    assert book.book.report(Buffer(SECOND - PAGE_SIZE, 2 * PAGE_SIZE)) == 2 * PAGE_SIZE
    assert marked.gone() == {LAST_OF_FIRST, LAST_OF_FIRST + 1}


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (1, PAGE_SIZE),
        (0, PAGE_SIZE + 1),
        (2 * SMALL - PAGE_SIZE, 2 * PAGE_SIZE),
        (AFTER_HOLE - PAGE_SIZE, 2 * PAGE_SIZE),
        (2 * SMALL, PAGE_SIZE),
        ((1 << 64) - PAGE_SIZE, PAGE_SIZE),
        (0, 0xFFFFF000),
    ],
)
def test_a_report_that_is_not_whole_pages_of_ram_is_left_alone(
    book: Book, marked: MarkedPages, address: int, length: int
) -> None:
    assert book.book.report(Buffer(address, length)) == 0
    assert marked.gone() == set()
    assert (book.metrics.reports_refused, book.metrics.reported_bytes) == (1, 0)


# When the kernel refuses


def test_a_refused_discard_is_counted_and_told_and_the_book_stays_true(ram: GuestRam) -> None:
    def refuse(piece: Piece) -> int:
        raise OSError(95, "Operation not supported")

    metrics = BalloonMetrics()
    pages = PageBook(metrics, refuse)
    with mapped(ram) as pages.memory:
        book = Book(ram, pages, metrics)
        assert book.inflate(1, 2) == 0
        assert book.held() == {1, 2}
        assert "not supported" in pages.last_failure
        assert (metrics.discard_failures, metrics.discarded_bytes) == (1, 0)


def test_many_pieces_go_in_one_call_and_a_few_do_not(book: Book, marked: MarkedPages) -> None:
    scattered = range(0, 64, 2)
    book.inflate(*scattered)
    assert marked.gone() == set(scattered)
    is_many = book.book._discard_many is not None
    assert book.metrics.discard_calls == (1 if is_many else len(scattered))
    assert book.metrics.discarded_bytes == len(scattered) * PAGE_SIZE
    book.inflate(THIRD, THIRD + 2)
    assert book.metrics.discard_calls == (1 if is_many else len(scattered)) + 2


def test_where_many_at_once_fail_each_is_tried_alone(ram: GuestRam, marked: MarkedPages) -> None:
    asked: list[int] = []

    def fail(pieces: Sequence[Piece]) -> int:
        asked.append(len(pieces))
        raise OSError(22, "Invalid argument")

    metrics = BalloonMetrics()
    pages = PageBook(metrics, discard_many=fail)
    with mapped(ram) as pages.memory:
        book = Book(ram, pages, metrics)
        assert book.inflate(*range(0, 20, 2)) == 10 * PAGE_SIZE
        assert asked == [10]
        assert marked.gone() == set(range(0, 20, 2))
        assert (metrics.discard_calls, metrics.discard_failures) == (10, 0)
        pages.is_inhibited = True
        assert book.inflate(*range(21, 41, 2)) == 0
        assert asked == [10]
        assert metrics.inhibited_bytes == 10 * PAGE_SIZE


# Larger host pages


@pytest.fixture
def huge() -> Iterator[tuple[Book, MarkedPages]]:
    """Return 4 host pages of 2 MiB; the region begins and ends in the middle of one."""
    half = HUGE // 2
    with GuestRam.of(RamBlock(HUGE + half, 4 * HUGE, file_offset=half), SCRATCH) as ram:
        metrics = BalloonMetrics()
        book = PageBook(metrics)
        book.collects = True
        with mapped(ram) as book.memory:
            book.memory.regions[0].host_page_bytes = HUGE
            first = (HUGE + half) // PAGE_SIZE
            marked = MarkedPages(ram, range(first, first + 4 * HUGE_PAGES))
            yield Book(ram, book, metrics), marked


COMPLETE = range(2 * HUGE_PAGES, 3 * HUGE_PAGES)
"""The first host page that lies wholly inside the region."""


def test_parts_are_collected_until_a_host_page_is_complete(
    huge: tuple[Book, MarkedPages],
) -> None:
    book, marked = huge
    *others, last = COMPLETE
    assert book.inflate(*others) == 0
    assert marked.gone() == set()
    assert book.book.waiting_bytes() == len(others) * PAGE_SIZE
    assert book.inflate(last) == HUGE
    assert marked.gone() == set(COMPLETE)
    assert marked.lost(allowed=COMPLETE) == set()
    assert book.book.waiting_bytes() == 0


def test_a_deflated_part_keeps_its_host_page(huge: tuple[Book, MarkedPages]) -> None:
    book, marked = huge
    *others, last = COMPLETE
    book.inflate(*others)
    book.deflate(others[100])
    assert book.inflate(last) == 0
    assert marked.gone() == set()
    assert book.inflate(others[100]) == HUGE


def test_a_driver_that_need_not_tell_has_to_give_all_parts_at_once(
    huge: tuple[Book, MarkedPages],
) -> None:
    """It may have written to the first ones again."""
    book, marked = huge
    book.book.collects = False
    *others, last = COMPLETE
    book.inflate(*others)
    assert book.inflate(last) == 0
    assert marked.gone() == set()
    book.deflate(*COMPLETE)
    assert book.inflate(COMPLETE[0] - 1, *COMPLETE, COMPLETE[-1] + 1) == HUGE
    assert marked.gone() == set(COMPLETE)


def test_a_part_that_was_kept_keeps_its_host_page(huge: tuple[Book, MarkedPages]) -> None:
    book, marked = huge
    *others, last = COMPLETE
    book.book.is_inhibited = True
    book.inflate(*others)
    book.book.is_inhibited = False
    assert book.inflate(last) == 0
    assert marked.gone() == set()
    assert book.book.kept.count == len(others)
    book.deflate(*others)
    assert book.inflate(*others) == HUGE
    assert marked.gone() == set(COMPLETE)


def test_the_ragged_ends_of_a_region_never_go(huge: tuple[Book, MarkedPages]) -> None:
    book, marked = huge
    pages = sorted(marked.pfns)
    assert book.inflate(*pages) == 3 * HUGE
    assert len(marked.gone()) == 3 * HUGE_PAGES
    ends = pages[: HUGE_PAGES // 2] + pages[-HUGE_PAGES // 2 :]
    assert marked.lost(allowed=marked.gone()) == set()
    assert not marked.gone() & set(ends)
    assert book.book.waiting_bytes() == HUGE


@pytest.mark.parametrize(
    ("offset", "length", "given_back"),
    [(0, HUGE, HUGE), (PAGE_SIZE, HUGE, 0), (0, HUGE + PAGE_SIZE, 0), (0, HUGE // 2, 0)],
)
def test_reports_of_larger_host_pages_are_whole_ones(
    huge: tuple[Book, MarkedPages], offset: int, length: int, given_back: int
) -> None:
    book, marked = huge
    start = COMPLETE[0] * PAGE_SIZE + offset
    assert book.book.report(Buffer(start, length)) == given_back
    assert len(marked.gone()) * PAGE_SIZE == given_back


# Any sequence at all

PAGES = st.lists(
    st.one_of(st.integers(0, 70), st.integers(THIRD - 4, THIRD + 36), st.integers(0, 0xFFFFFFFF)),
    max_size=40,
)
STEP = st.one_of(
    st.tuples(st.just("inflate"), PAGES),
    st.tuples(st.just("deflate"), PAGES),
    st.tuples(st.just("report"), st.tuples(st.integers(0, 70), st.integers(0, 8)).map(list)),
)


@settings(max_examples=60)
@given(st.lists(STEP, max_size=12))
def test_the_book_is_a_set_and_no_other_page_is_touched(
    steps: list[tuple[str, list[int]]],
) -> None:
    blocks = RamBlock(0, SMALL), RamBlock(SECOND, SMALL), RamBlock(AFTER_HOLE, SMALL), SCRATCH
    with GuestRam.of(*blocks) as ram, mapped(ram) as memory:
        metrics = BalloonMetrics()
        book = Book(ram, PageBook(metrics, discard_many=best_discard_many()), metrics)
        book.book.memory = memory
        marked = MarkedPages(ram, [*range(64), *range(THIRD, THIRD + 32)])
        model, empty = set[int](), set[int]()
        for action, numbers in steps:
            if action == "report":
                first, count = numbers
                run = set(range(first, first + count))
                book.book.report(Buffer(first * PAGE_SIZE, count * PAGE_SIZE))
                empty |= run if run <= marked.pfns else set()
            elif action == "inflate":
                book.inflate(*numbers)
                model |= set(numbers) & marked.pfns
                empty |= set(numbers) & marked.pfns
            else:
                book.deflate(*numbers)
                taken = model & set(numbers)
                marked.mark(taken)
                model -= taken
                empty -= taken
            assert book.held() == model
            assert book.book.ledger.count == len(model)
            assert marked.gone() == empty
            assert marked.lost(allowed=empty) == set()

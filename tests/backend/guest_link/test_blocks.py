"""The host's side of the trade in blocks, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ballast.guest_link.blocks import BlockSession
from ballast_protocol.guest import ABILITY_BLOCKS, ErrorReply, Message, MessageKind
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    BLOCK_BYTES,
    BlockCounters,
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Holding,
    HoldingAck,
    NodeGoal,
    PageRange,
    Purpose,
    SetSweeps,
    SweepDone,
)
from support.blocks import Books, span
from support.driver import GuestRam, RamBlock
from support.guest_messages import HELLO
from support.memory import mapped

BLOCKS = 8
VERSION = 2
BLOCKS_HELLO = replace(HELLO, abilities=(*HELLO.abilities, ABILITY_BLOCKS), hello_id=1)
GOAL = (NodeGoal(ANY_NODE, 4 * BLOCK_BYTES),)
STATUS = BlocksStatus(
    nodes=(),
    goal_bytes=4 * BLOCK_BYTES,
    settled=True,
    reserve_bytes=0,
    available_bytes=0,
    pressure=False,
    counters=BlockCounters(),
)


class Host:
    """A session, what it sent, and how often it told of a change."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.sent: list[tuple[Message, int]] = []
        self.changes = 0
        self.session = BlockSession(books.blocks, self._send, self._changed)

    def _send(self, message: Message, request_id: int) -> None:
        self.sent.append((message, request_id))

    def _changed(self) -> None:
        self.changes += 1

    def heard(self) -> list[tuple[Message, int]]:
        sent, self.sent = self.sent, []
        return sent

    def begin(self, boot_id: str = "a") -> int:
        number = self.session.begin(replace(BLOCKS_HELLO, boot_id=boot_id), VERSION)
        assert number is not None
        return number

    def open(self, boot_id: str = "a") -> int:
        number = self.begin(boot_id)
        self.session.take(Holding(number, (), last=True), 1)
        self.heard()
        return number

    def report(self, session: int, *spans: PageRange, request_id: int = 7) -> Message:
        """Report blocks to hold and return the answer."""
        self.session.take(BlocksReport(session, Purpose.HOLD, spans), request_id)
        ((answer, answered_id),) = self.heard()
        assert answered_id == request_id
        return answer


@pytest.fixture
def host() -> Iterator[Host]:
    with GuestRam.of(RamBlock(0, BLOCKS * BLOCK_BYTES)) as ram:
        books = Books(ram)
        with mapped(ram) as books.pages.memory:
            books.fill(*range(BLOCKS))
            yield Host(books)


def test_a_session_opens_with_what_is_held_and_then_says_what_is_wanted(host: Host) -> None:
    host.session.set_goals(GOAL)
    host.session.set_sweeps(SetSweeps(every_seconds=60.0))
    number = host.begin()
    assert host.heard() == []
    host.session.take(Holding(number, (span(0),), last=False), 1)
    assert host.heard() == [(HoldingAck(number, ()), 1)]
    assert not host.session.is_open
    host.session.take(Holding(number, (span(2),), last=True), 2)
    assert host.heard() == [
        (HoldingAck(number, ()), 2),
        (SetSweeps(every_seconds=60.0), 0),
        (BlocksGoal(GOAL), 0),
    ]
    assert host.session.is_open


def test_an_acknowledgement_comes_after_the_discard(host: Host) -> None:
    number = host.open()
    emptied: list[bool] = []
    host.session._send = lambda message, _id: emptied.append(host.books.is_empty(3))
    host.session.take(BlocksReport(number, Purpose.HOLD, (span(3),)), 1)
    assert emptied == [True]


def test_what_was_accepted_and_what_was_not_is_told(host: Host) -> None:
    number = host.open()
    answer = host.report(number, span(6), span(BLOCKS))
    assert answer == BlocksAck(number, (span(BLOCKS),), BLOCK_BYTES)
    assert host.books.held() == {6}
    assert host.changes == 2
    assert host.session.account() == BLOCK_BYTES
    assert host.session.account() == 0


def test_nothing_of_another_session_is_discarded(host: Host) -> None:
    first = host.open()
    second = host.open()
    assert first != second
    answer = host.report(first, span(0))
    assert isinstance(answer, ErrorReply)
    assert answer.refused_kind == MessageKind.BLOCKS_REPORT
    host.session.end()
    assert isinstance(host.report(second, span(0)), ErrorReply)
    assert host.session.counters.stale_messages == 2
    assert host.books.discards == []


def test_nothing_is_discarded_before_the_agent_has_said_what_it_holds(host: Host) -> None:
    number = host.begin()
    assert isinstance(host.report(number, span(0)), ErrorReply)
    host.session.take(Holding(number, (), last=False), 1)
    host.heard()
    assert isinstance(host.report(number, span(0)), ErrorReply)
    assert host.books.discards == []


def test_two_daemons_never_number_alike(host: Host) -> None:
    other = BlockSession(host.books.blocks, host._send, host._changed)
    assert other.begin(BLOCKS_HELLO, VERSION) != host.begin()


def test_an_agent_that_comes_back_is_told_what_is_known(host: Host) -> None:
    host.report(host.open(), span(0, 3))
    number = host.begin()
    assert host.books.held() == {0, 1, 2}
    host.session.take(Holding(number, (span(1, 4),), last=True), 1)
    assert (HoldingAck(number, (span(1, 2),)), 1) in host.heard()
    assert host.books.held() == {1, 2}
    assert isinstance(host.report(number, span(3, 2)), BlocksAck)


def test_a_holding_of_another_session_or_after_the_last_is_refused(host: Host) -> None:
    host.report(host.open(), span(0, 3))
    number = host.open()
    host.report(number, span(0, 3))
    for session in (number, number - 1):
        host.session.take(Holding(session, (), last=True), 4)
        ((answer, request_id),) = host.heard()
        assert isinstance(answer, ErrorReply)
        assert request_id == 4
    assert host.books.held() == {0, 1, 2}


def test_a_guest_that_starts_anew_has_all_of_its_memory(host: Host) -> None:
    host.report(host.open("a"), span(0, 3))
    host.begin("b")
    assert host.books.held() == set()


def test_a_release_is_believed_whenever_it_comes(host: Host) -> None:
    number = host.open()
    host.report(number, span(0, 3))
    host.session.end()
    changes = host.changes
    host.session.take(BlocksReleased(number, (span(1),)), 0)
    assert host.books.held() == {0, 2}
    assert host.changes == changes + 1
    assert host.heard() == []


@pytest.mark.parametrize(
    ("hello", "version"),
    [
        (HELLO, VERSION),
        (BLOCKS_HELLO, 1),
        (replace(BLOCKS_HELLO, hello_id=None), VERSION),
    ],
)
def test_an_agent_that_knows_no_blocks_has_no_session(
    host: Host, hello: object, version: int
) -> None:
    assert host.session.begin(hello, version) is None  # type: ignore[arg-type]
    assert isinstance(host.report(0, span(0)), ErrorReply)


def test_goals_are_sent_when_they_change(host: Host) -> None:
    host.open()
    host.session.set_goals(GOAL)
    host.session.set_goals(GOAL)
    assert host.heard() == [(BlocksGoal(GOAL), 0)]
    assert host.session.goal_bytes == 4 * BLOCK_BYTES
    host.session.end()
    host.session.set_goals(())
    assert host.heard() == []


def test_a_status_counts_for_the_goal_that_it_speaks_of(host: Host) -> None:
    host.open()
    host.session.take(STATUS, 0)
    assert not host.session.has_settled
    host.session.set_goals(GOAL)
    assert host.session.has_settled
    host.session.take(replace(STATUS, settled=False), 0)
    assert not host.session.has_settled


def test_a_status_from_before_a_release_says_nothing_any_more(host: Host) -> None:
    number = host.open()
    host.session.set_goals(GOAL)
    host.heard()
    host.report(number, span(0, 2))
    host.session.take(STATUS, 0)
    host.session.take(BlocksReleased(number, (span(1),)), 0)
    assert not host.session.has_settled
    host.session.take(STATUS, 0)
    assert host.session.has_settled


def test_releases_under_pressure_are_counted_across_agents(host: Host) -> None:
    host.open()
    host.session.take(replace(STATUS, counters=BlockCounters(pressure_releases=3)), 0)
    assert host.session.counters.pressure_releases == 0
    host.session.take(replace(STATUS, counters=BlockCounters(pressure_releases=5)), 0)
    assert host.session.counters.pressure_releases == 2
    host.open()
    host.session.take(STATUS, 0)
    assert host.session.counters.pressure_releases == 2


def test_a_status_without_a_session_says_nothing(host: Host) -> None:
    host.session.take(STATUS, 0)
    assert host.session.status is None


def test_the_last_sweep_is_kept(host: Host) -> None:
    host.open()
    done = SweepDone(0.1, "nothing left", 4, 3, 2 * BLOCK_BYTES, BLOCK_BYTES)
    host.session.take(done, 0)
    assert host.session.last_sweep == done


def test_what_is_left_of_a_sweep_is_held(host: Host) -> None:
    """The guest's kernel has let other blocks go than those that the sweep has taken."""
    number = host.open()
    host.report(number, span(0, 2))
    host.session.take(BlocksReport(number, Purpose.SWEEP, (span(2, 3), span(6, 1, node=1))), 8)
    host.session.take(BlocksReleased(number, (span(0, 2), span(4))), 0)
    refused = SweepDone(0.0, "another sweep goes on", 0, 0, 0, 0)
    host.session.take(refused, 0)
    book = host.books.blocks
    assert (book.hold_bytes, book.sweep_bytes) == (0, 3 * BLOCK_BYTES)
    changes = host.changes
    host.session.take(replace(refused, reported_bytes=4 * BLOCK_BYTES), 0)
    assert (book.hold_bytes, book.sweep_bytes) == (3 * BLOCK_BYTES, 0)
    assert [node.hold_bytes for node in book.by_node().values()] == [2 * BLOCK_BYTES, BLOCK_BYTES]
    assert host.changes > changes
    assert host.books.held() == {2, 3, 6}
    host.session.take(BlocksReleased(number, (span(2, 2),)), 0)
    assert book.hold_bytes == BLOCK_BYTES

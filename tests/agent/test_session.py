from __future__ import annotations

from dataclasses import replace

import pytest

from ballast_agent.session import (
    FIRST_HELLO_SECONDS,
    HELLO_RETRY_SECONDS,
    MAX_OUTPUT_BYTES,
    REFUSED_RETRY_SECONDS,
    AgentSession,
)
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import (
    ErrorReply,
    Hello,
    HelloRequest,
    MemoryReport,
    Message,
    MessageKind,
    ReportRequest,
    SetInterval,
    Welcome,
    decode,
    encode,
)
from ballast_protocol.guest_framing import Frame, FrameDecoder
from support.guest_messages import HELLO, report


class Guest:
    """A guest whose reports are numbered by their `boottime_seconds`."""

    def __init__(self) -> None:
        self.reports = 0
        self.trouble: OperatorError | None = None
        self.session = AgentSession(HELLO, self.take_report)

    def take_report(self) -> MemoryReport:
        if self.trouble is not None:
            raise self.trouble
        self.reports += 1
        return report(boottime_seconds=float(self.reports))

    def said(self) -> list[tuple[int, Message]]:
        frames = FrameDecoder().feed(bytes(self.session.output))
        self.session.output.clear()
        return [(frame.request_id, decode(frame)) for frame in frames]

    def hears(self, message: Message, request_id: int = 0, *, now: float) -> None:
        self.session.receive(encode(message, request_id), now)

    def tick_until(self, now: float) -> None:
        """Call `tick` exactly when it says it is due."""
        while (due := self.session.deadline()) is not None and due <= now:
            self.session.tick(due)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def welcomed(guest: Guest) -> Guest:
    guest.session.connected(0.0)
    guest.hears(Welcome(1, 5.0), now=0.0)
    guest.said()
    return guest


def test_it_introduces_itself_until_welcomed(guest: Guest) -> None:
    assert guest.session.deadline() is None
    guest.session.connected(0.0)
    guest.tick_until(FIRST_HELLO_SECONDS)
    assert guest.said() == [(0, HELLO)]
    guest.tick_until(FIRST_HELLO_SECONDS + HELLO_RETRY_SECONDS - 0.1)
    assert guest.said() == []
    guest.tick_until(FIRST_HELLO_SECONDS + HELLO_RETRY_SECONDS)
    assert guest.said() == [(0, HELLO)]
    assert not guest.session.welcomed
    guest.hears(Welcome(1, 3600.0), now=6.0)
    assert guest.session.welcomed
    guest.tick_until(100.0)
    assert [type(message) for _, message in guest.said()] == [MemoryReport]


def test_a_host_that_asks_is_told_once(guest: Guest) -> None:
    """Introductions that cross would begin two sessions."""
    guest.session.connected(0.0)
    guest.tick_until(0.9 * FIRST_HELLO_SECONDS)
    assert guest.said() == []
    guest.hears(HelloRequest(), now=0.9 * FIRST_HELLO_SECONDS)
    guest.tick_until(HELLO_RETRY_SECONDS)
    assert guest.said() == [(0, HELLO)]


def test_an_unread_introduction_is_not_repeated(guest: Guest) -> None:
    guest.session.connected(0.0)
    guest.tick_until(100.0)
    assert guest.said() == [(0, HELLO)]


def test_whoever_asks_for_an_introduction_gets_it_whatever_else_waits(welcomed: Guest) -> None:
    """A daemon's successor asks; what its predecessor was to be told may not be written yet."""
    welcomed.session.tick(0.0)
    welcomed.hears(HelloRequest(), now=1.0)
    welcomed.hears(HelloRequest(), now=1.0)
    assert [type(message) for _, message in welcomed.said()] == [MemoryReport, Hello]


def test_it_reports_at_the_interval_that_the_host_asked_for(welcomed: Guest) -> None:
    times = []
    for tenths in range(151):
        welcomed.session.tick(tenths / 10)
        if welcomed.said():
            times.append(tenths / 10)
    assert times == [0.0, 5.0, 10.0, 15.0]


def test_a_pause_leaves_one_report_to_send(welcomed: Guest) -> None:
    welcomed.session.tick(3600.0)
    welcomed.session.tick(3600.0)
    assert len(welcomed.said()) == 1
    assert welcomed.session.deadline() == 3605.0


def test_reports_do_not_pile_up_while_the_host_does_not_read(welcomed: Guest) -> None:
    welcomed.tick_until(100.0)
    assert welcomed.reports == 1


def test_a_new_interval_holds_at_once(welcomed: Guest) -> None:
    welcomed.session.tick(0.0)
    welcomed.hears(SetInterval(1.0), now=0.5)
    assert welcomed.session.deadline() == 1.5
    welcomed.hears(SetInterval(60.0), now=0.6)
    assert welcomed.session.deadline() == 1.5


def test_an_interval_before_the_welcome_changes_nothing(guest: Guest) -> None:
    guest.session.connected(0.0)
    guest.hears(SetInterval(1.0), now=0.0)
    assert guest.session.deadline() == FIRST_HELLO_SECONDS


def test_requests_are_answered_under_their_id(welcomed: Guest) -> None:
    welcomed.hears(ReportRequest(), 41, now=1.0)
    welcomed.hears(HelloRequest(), 42, now=1.0)
    assert welcomed.said() == [(41, report(boottime_seconds=1.0)), (42, HELLO)]


def test_a_host_that_asks_for_a_hello_has_to_welcome_again(welcomed: Guest) -> None:
    welcomed.hears(HelloRequest(), now=1.0)
    assert not welcomed.session.welcomed
    welcomed.tick_until(4.9)
    assert welcomed.reports == 0


def test_trouble_is_told_to_who_asked_and_does_not_end_the_reports(welcomed: Guest) -> None:
    welcomed.trouble = OperatorError("/proc/buddyinfo is gone")
    welcomed.session.tick(0.0)
    assert welcomed.said() == []
    welcomed.hears(ReportRequest(), 9, now=1.0)
    refused = ErrorReply(MessageKind.REPORT_REQUEST, "/proc/buddyinfo is gone")
    assert welcomed.said() == [(9, refused)]
    welcomed.trouble = None
    welcomed.tick_until(5.0)
    assert len(welcomed.said()) == 1


@pytest.mark.parametrize(
    "frame",
    [
        Frame(99, 5, b"{}", 1),
        Frame(MessageKind.WELCOME, 5, b"{}", 1),
        Frame(MessageKind.REPORT_REQUEST, 5, b"{}", 3),
        Frame(MessageKind.REPORT_REQUEST, 5, b"[]", 1),
        Frame(MessageKind.WELCOME, 5, b'{"protocol_version":3,"interval_seconds":1}', 1),
        replace(FrameDecoder().feed(encode(HELLO))[0], request_id=5),
    ],
)
def test_what_it_does_not_understand_is_refused_and_harmless(welcomed: Guest, frame: Frame) -> None:
    welcomed.session.receive(frame.pack(), 1.0)
    ((request_id, reply),) = welcomed.said()
    assert isinstance(reply, ErrorReply)
    assert (request_id, reply.refused_kind) == (5, frame.kind)
    assert welcomed.session.welcomed


def test_a_refusal_is_never_answered(welcomed: Guest) -> None:
    welcomed.session.receive(Frame(MessageKind.ERROR, 0, b"[]", 1).pack(), 1.0)
    welcomed.hears(ErrorReply(MessageKind.MEMORY_REPORT, "no room"), now=1.0)
    assert welcomed.said() == []
    assert welcomed.session.welcomed


def test_a_refused_agent_waits_longer(guest: Guest) -> None:
    guest.session.connected(0.0)
    guest.said()
    guest.hears(ErrorReply(MessageKind.HELLO, "no common version"), now=1.0)
    assert guest.session.deadline() == 1.0 + REFUSED_RETRY_SECONDS
    guest.tick_until(1.0 + REFUSED_RETRY_SECONDS)
    assert guest.said() == [(0, HELLO)]


def test_a_lost_connection_leaves_nothing_behind(welcomed: Guest) -> None:
    welcomed.session.tick(0.0)
    welcomed.session.receive(encode(ReportRequest(), 3)[:-1], 1.0)
    welcomed.session.disconnected(1.0)
    assert not welcomed.session.output
    assert welcomed.session.deadline() is None
    welcomed.session.connected(2.0)
    welcomed.session.receive(encode(ReportRequest(), 4), 2.0)
    assert [request_id for request_id, _ in welcomed.said()] == [4]
    welcomed.tick_until(2.0 + FIRST_HELLO_SECONDS)
    assert [type(message) for _, message in welcomed.said()] == [Hello]


def test_requests_wait_while_replies_are_not_read(welcomed: Guest) -> None:
    assert welcomed.session.wants_input
    while len(welcomed.session.output) <= MAX_OUTPUT_BYTES:
        welcomed.hears(ReportRequest(), 1, now=1.0)
    assert not welcomed.session.wants_input

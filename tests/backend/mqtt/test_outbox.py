from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from ballast.mqtt.outbox import Kind, Outbox, Outgoing

TOPIC = st.sampled_from(["a", "b", "c"])
PAYLOAD = st.binary(min_size=1, max_size=2)


def taken(outbox: Outbox) -> list[Outgoing]:
    items = []
    while (item := outbox.take()) is not None:
        items.append(item)
    return items


def sent(outbox: Outbox) -> list[bytes]:
    items = taken(outbox)
    for item in items:
        outbox.done(item)
    return [item.payload for item in items]


def test_messages_leave_in_their_order() -> None:
    outbox = Outbox(10)
    outbox.event("e", b"1")
    outbox.retain("s", b"2")
    outbox.result("r", b"3", b"id")
    one, two, three = taken(outbox)
    assert (one.kind, one.qos, one.is_retained) == (Kind.EVENT, 1, False)
    assert (two.kind, two.qos, two.is_retained) == (Kind.RETAINED, 1, True)
    assert (three.kind, three.qos, three.correlation) == (Kind.RESULT, 1, b"id")
    assert len(outbox) == 3
    for item in (one, two, three):
        outbox.done(item)
    assert (len(outbox), outbox.counters.sent) == (0, 3)


def test_only_the_newest_state_waits_and_an_unchanged_one_not_at_all() -> None:
    outbox = Outbox(10)
    assert outbox.retain("s", b"1")
    assert outbox.retain("s", b"2")
    assert not outbox.retain("s", b"2")
    assert sent(outbox) == [b"2"]
    assert not outbox.retain("s", b"2")
    assert sent(outbox) == []


def test_every_broker_is_told_everything_that_is_retained() -> None:
    outbox = Outbox(10)
    outbox.retain("a", b"1")
    outbox.retain("b", b"2")
    outbox.connected()
    assert sent(outbox) == [b"1", b"2"]
    outbox.disconnected()
    outbox.retain("b", b"3")
    outbox.connected()
    assert sorted(sent(outbox)) == [b"1", b"3"]


def test_what_is_forgotten_is_taken_back_once() -> None:
    outbox = Outbox(10)
    outbox.retain("a", b"1")
    outbox.forget("a")
    outbox.connected()
    assert sent(outbox) == [b""]
    outbox.disconnected()
    outbox.connected()
    assert sent(outbox) == []


def test_what_was_on_its_way_is_sent_again_before_what_came_later() -> None:
    outbox = Outbox(10)
    outbox.connected()
    outbox.event("e", b"1")
    outbox.result("r", b"2", None)
    taken(outbox)
    outbox.event("e", b"3")
    outbox.disconnected()
    assert sent(outbox) == [b"1", b"2", b"3"]


def test_a_state_on_its_way_gives_way_to_a_newer_one() -> None:
    outbox = Outbox(10)
    outbox.retain("s", b"1")
    taken(outbox)
    outbox.retain("s", b"2")
    outbox.disconnected()
    assert sent(outbox) == [b"2"]


def test_of_two_states_on_their_way_the_newer_one_is_sent_again() -> None:
    outbox = Outbox(10)
    outbox.retain("s", b"1")
    taken(outbox)
    outbox.retain("s", b"2")
    taken(outbox)
    outbox.disconnected()
    assert sent(outbox) == [b"2"]


def test_events_give_way_before_results_and_are_counted() -> None:
    outbox = Outbox(3)
    outbox.result("r", b"r1", None)
    outbox.event("e", b"e1")
    outbox.event("e", b"e2")
    outbox.result("r", b"r2", None)
    outbox.result("r", b"r3", None)
    outbox.result("r", b"r4", None)
    assert sent(outbox) == [b"r2", b"r3", b"r4"]
    assert (outbox.counters.dropped_events, outbox.counters.dropped_results) == (2, 1)


def test_statistics_are_worth_nothing_without_a_connection() -> None:
    outbox = Outbox(10)
    outbox.fleeting("t", b"1")
    outbox.connected()
    outbox.fleeting("t", b"2")
    outbox.fleeting("t", b"3")
    outbox.fleeting("u", b"4")
    (first,) = [outbox.take()]
    assert first is not None
    assert (first.payload, first.qos) == (b"3", 0)
    outbox.disconnected()
    outbox.connected()
    assert sent(outbox) == []


def test_whoever_sends_is_woken() -> None:
    calls = []
    outbox = Outbox(10, wake=lambda: calls.append(1))
    outbox.event("e", b"")
    assert calls == [1]


class OutboxMachine(RuleBasedStateMachine):
    """Nothing promised is lost uncounted, and in the end the broker has the last word of each."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(5)
        self.flying: list[Outgoing] = []
        self.promised = self.delivered = 0
        self.said: dict[str, bytes] = {}
        self.heard: dict[str, bytes] = {}

    @rule(topic=TOPIC, payload=PAYLOAD)
    def retain(self, topic: str, payload: bytes) -> None:
        self.said[topic] = payload
        self.outbox.retain(topic, payload)

    @rule(topic=TOPIC)
    def forget(self, topic: str) -> None:
        self.said[topic] = b""
        self.outbox.forget(topic)

    @rule(topic=TOPIC, payload=PAYLOAD, is_event=st.booleans())
    def promise(self, topic: str, payload: bytes, is_event: bool) -> None:
        self.promised += 1
        if is_event:
            self.outbox.event(topic, payload)
        else:
            self.outbox.result(topic, payload, None)

    @rule()
    def take(self) -> None:
        item = self.outbox.take()
        if item is not None:
            self.flying.append(item)

    @precondition(lambda self: self.flying)
    @rule()
    def deliver(self) -> None:
        item = self.flying.pop(0)
        self.outbox.done(item)
        if item.kind is Kind.RETAINED:
            self.heard[item.topic] = item.payload
        else:
            self.delivered += 1

    @rule()
    def lose_the_connection(self) -> None:
        self.flying.clear()
        self.outbox.disconnected()

    @rule()
    def connect(self) -> None:
        self.lose_the_connection()
        self.outbox.connected()

    def teardown(self) -> None:
        self.lose_the_connection()
        self.flying = taken(self.outbox)
        while self.flying:
            self.deliver()
        counters = self.outbox.counters
        dropped = counters.dropped_events + counters.dropped_results
        assert self.promised == self.delivered + dropped
        assert self.heard == self.said
        assert len(self.outbox) == 0


OutboxMachine.TestCase.settings = settings(deadline=None, max_examples=200)
TestOutboxMachine = OutboxMachine.TestCase

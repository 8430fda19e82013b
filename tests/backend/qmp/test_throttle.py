from __future__ import annotations

from ballast.qmp.throttle import EventThrottle


def test_the_first_passes_and_the_last_follows_at_the_end_of_the_period() -> None:
    throttle: EventThrottle[bytes] = EventThrottle({"BALLOON_CHANGE": 1.0})
    assert throttle.offer("BALLOON_CHANGE", b"1", 10.0)
    assert not throttle.offer("BALLOON_CHANGE", b"2", 10.2)
    assert not throttle.offer("BALLOON_CHANGE", b"3", 10.9)
    assert throttle.next_end() == 11.0
    assert throttle.expire(10.99) == []
    assert throttle.expire(11.0) == [b"3"]


def test_what_was_kept_begins_a_period_of_its_own() -> None:
    throttle: EventThrottle[bytes] = EventThrottle({"BALLOON_CHANGE": 1.0})
    throttle.offer("BALLOON_CHANGE", b"1", 0.0)
    throttle.offer("BALLOON_CHANGE", b"2", 0.5)
    assert throttle.expire(1.0) == [b"2"]
    assert throttle.next_end() == 2.0
    assert not throttle.offer("BALLOON_CHANGE", b"3", 1.5)
    assert throttle.expire(2.0) == [b"3"]


def test_a_quiet_period_ends_the_pacing() -> None:
    throttle: EventThrottle[bytes] = EventThrottle({"BALLOON_CHANGE": 1.0})
    throttle.offer("BALLOON_CHANGE", b"1", 0.0)
    assert throttle.expire(1.0) == []
    assert throttle.next_end() is None
    assert throttle.offer("BALLOON_CHANGE", b"2", 1.1)


def test_kinds_do_not_disturb_each_other() -> None:
    throttle: EventThrottle[bytes] = EventThrottle({"A": 1.0, "B": 5.0})
    assert throttle.offer("A", b"a", 0.0)
    assert throttle.offer("B", b"b", 0.5)
    assert all(throttle.offer("UNPACED", b"u", 0.5) for _ in range(3))
    assert throttle.next_end() == 1.0
    assert not throttle.offer("B", b"b2", 0.6)
    assert throttle.expire(1.0) == []
    assert throttle.next_end() == 5.5


def test_what_is_overtaken_is_not_sent() -> None:
    throttle: EventThrottle[bytes] = EventThrottle({"A": 1.0})
    assert throttle.offer("A", b"1", 10.0)
    assert not throttle.offer("A", b"2", 10.5)
    throttle.forget("A")
    throttle.forget("B")
    assert throttle.expire(11.0) == []

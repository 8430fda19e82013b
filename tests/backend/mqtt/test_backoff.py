from __future__ import annotations

from ballast.mqtt.backoff import Backoff


def test_delays_double_up_to_a_bound() -> None:
    backoff = Backoff(1, 10, lambda: 1.0)
    assert [backoff.lost(0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.attempts == 6


def test_chance_shortens_them_by_half_at_most() -> None:
    chances = iter([0.0, 0.5])
    backoff = Backoff(1, 10, lambda: next(chances))
    assert [backoff.lost(0), backoff.lost(0)] == [0.5, 1.5]


def test_a_connection_that_held_starts_anew() -> None:
    backoff = Backoff(1, 60, lambda: 1.0)
    for _ in range(4):
        backoff.lost(0)
    assert backoff.lost(3600) == 1


def test_one_that_is_lost_at_once_does_not() -> None:
    backoff = Backoff(1, 60, lambda: 1.0)
    assert [backoff.lost(0.5), backoff.lost(0.5), backoff.lost(0.5)] == [1, 2, 4]


def test_a_broker_may_be_away_for_years() -> None:
    backoff = Backoff(1, 60, lambda: 1.0)
    for _ in range(5000):
        assert backoff.lost(0) <= 60

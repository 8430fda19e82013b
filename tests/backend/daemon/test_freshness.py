from __future__ import annotations

from ballast.daemon.freshness import Freshness


class Clocks:
    steady = 50.0
    wall = 1000.0


def made(clocks: Clocks) -> Freshness:
    return Freshness(clock=lambda: clocks.steady, unix_seconds=lambda: clocks.wall)


def test_what_never_came_has_no_age() -> None:
    assert made(Clocks()).age_seconds(0) is None


def test_a_clock_that_is_set_back_makes_nothing_new() -> None:
    clocks = Clocks()
    fresh = made(clocks)
    fresh.note(1)
    clocks.steady, clocks.wall = 60.0, 10.0
    assert fresh.age_seconds(1000) == 10.0


def test_a_repeated_buffer_is_not_new() -> None:
    clocks = Clocks()
    fresh = made(clocks)
    fresh.note(1)
    clocks.steady += 5
    fresh.note(1)
    assert fresh.age_seconds(1000) == 5.0
    fresh.note(2)
    assert fresh.age_seconds(1000) == 0.0


def test_what_a_predecessor_left_is_no_younger_than_we_are() -> None:
    clocks = Clocks()
    fresh = made(clocks)
    clocks.steady, clocks.wall = 53.0, 1003.0
    assert fresh.age_seconds(990) == 13.0
    clocks.wall = 900.0
    assert fresh.age_seconds(990) == 3.0

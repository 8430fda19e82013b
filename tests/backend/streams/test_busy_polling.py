from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from ballast.streams.busy_polling import BusySelector, Gaps, run

MOST = 0.0001
SHORT, LONG = MOST / 4, 1.0
CONFIG, KICK = 5, 6


class Clock:
    """A clock that moves by itself, so that looking takes time."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += 0.000005
        return self.now


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def lock_step(gaps: Gaps) -> list[bool]:
    """One buffer of a driver: a kick, two config accesses; whether each is expected at once."""
    expected = []
    for fd, seconds in ((KICK, LONG), (CONFIG, LONG), (CONFIG, SHORT)):
        expected.append(gaps.is_short)
        gaps.came(fd, seconds)
    return expected


def test_the_short_gap_of_a_lock_step_is_learnt_and_the_long_ones_are_not() -> None:
    gaps = Gaps(MOST)
    assert lock_step(gaps) == [False, False, False]
    for _ in range(8):
        lock_step(gaps)
    assert lock_step(gaps) == [False, False, True]


def test_what_is_learnt_is_unlearnt() -> None:
    gaps = Gaps(MOST)
    for _ in range(10):
        gaps.came(KICK, SHORT)
    assert gaps.is_short
    rounds = 0
    while gaps.is_short:
        gaps.came(KICK, LONG)
        rounds += 1
    assert rounds < 5


def test_where_nothing_comes_any_more_it_is_expected_no_longer() -> None:
    gaps = Gaps(MOST)
    for _ in range(10):
        gaps.came(KICK, SHORT)
    gaps.nothing_came()
    assert not gaps.is_short


def test_any_number_of_descriptors_is_bounded() -> None:
    gaps = Gaps(MOST)
    for fd in range(10_000):
        gaps.came(fd, SHORT)
    assert len(gaps._expected) <= 4096


def expectant(selector: BusySelector, fd: int) -> None:
    for _ in range(10):
        selector.gaps.came(fd, SHORT)


def test_it_looks_no_longer_than_the_bound_and_only_once_in_vain(pipe: tuple[int, int]) -> None:
    clock = Clock()
    with BusySelector(MOST, clock) as selector:
        selector.add_reader(pipe[0], lambda: None)
        expectant(selector, pipe[0])
        assert selector.poll(0) == []
        assert clock.looks == 0
        assert selector.poll(0.001) == []
        assert 2 < clock.looks < 2 * MOST / 0.000005
        clock.looks = 0
        assert selector.poll(0.001) == []
        assert clock.looks == 1


@pytest.mark.parametrize("is_expected", [True, False])
def test_what_is_there_is_returned_at_once(pipe: tuple[int, int], is_expected: bool) -> None:
    clock = Clock()
    with BusySelector(MOST, clock) as selector:
        selector.add_reader(pipe[0], lambda: None)
        if is_expected:
            expectant(selector, pipe[0])
        os.write(pipe[1], b"x")
        assert [fd for fd, _ in selector.poll(None)] == [pipe[0]]
        assert clock.looks <= 3


@pytest.mark.parametrize("seconds", [0.0, MOST])
def test_a_loop_runs_with_it_and_without(seconds: float, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        found = loop.create_future()
        loop.add_reader(pipe[0], lambda: found.set_result(os.read(pipe[0], 1)))
        for value in (b"a", b"b"):
            found = loop.create_future()
            loop.call_later(0.001, os.write, pipe[1], value)
            seen.append(await found)

    run(main(), seconds)
    assert seen == [b"a", b"b"]

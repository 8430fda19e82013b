from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Iterator

import pytest

from ballast.streams.busy_polling import FIRST_SECONDS, BusySelector, Window, run

MOST = 0.0001


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


def grown(window: Window) -> None:
    while window.seconds < MOST:
        window.slept(0)


def test_the_window_grows_while_a_longer_look_would_have_paid_off() -> None:
    window = Window(MOST)
    assert window.seconds == 0
    window.slept(MOST / 2)
    assert window.seconds == FIRST_SECONDS
    grown(window)
    window.slept(0)
    assert window.seconds == MOST


def test_the_window_closes_where_nothing_comes() -> None:
    window = Window(MOST)
    grown(window)
    sleeps = 0
    while window.seconds:
        window.slept(1.0)
        sleeps += 1
    assert sleeps < 8


def test_it_looks_no_longer_than_the_window_and_never_where_nobody_waits(
    pipe: tuple[int, int],
) -> None:
    clock = Clock()
    with BusySelector(MOST, clock) as selector:
        selector.register(pipe[0], selectors.EVENT_READ)
        grown(selector.window)
        assert selector.select(0) == []
        assert clock.looks == 0
        assert selector.select(0.001) == []
        assert 2 < clock.looks < 2 * MOST / 0.000005


def test_what_is_ready_is_returned_at_once(pipe: tuple[int, int]) -> None:
    clock = Clock()
    with BusySelector(MOST, clock) as selector:
        key = selector.register(pipe[0], selectors.EVENT_READ)
        os.write(pipe[1], b"x")
        for begin in (lambda _: None, grown):
            begin(selector.window)
            assert selector.select(None) == [(key, selectors.EVENT_READ)]
        assert clock.looks <= 4


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

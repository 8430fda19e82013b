from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from ballast.keeper.loop import HANG_UP, READ, Loop
from support.fds import none_left_open


@pytest.fixture
def loop() -> Iterator[Loop]:
    with none_left_open():
        loop = Loop()
        yield loop
        loop.close()


def test_timers_go_off_in_order_unless_cancelled(loop: Loop) -> None:
    found: list[str] = []
    loop.later(0.02, lambda: loop.end(7))
    loop.later(0.01, lambda: found.append("second"))
    loop.later(0.0, lambda: found.append("first"))
    loop.later(0.0, lambda: found.append("never")).cancel()
    assert loop.run() == 7
    assert found == ["first", "second"]


def test_a_bug_in_a_callback_is_told_and_survived(
    loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("so\nwhat")

    loop.later(0.0, fail)
    loop.later(0.01, lambda: loop.end(0))
    assert loop.run() == 0
    assert "keeper: a bug of ours: ZeroDivisionError: so what\n" in capfd.readouterr().err


def test_signals(loop: Loop) -> None:
    loop.on_signal(signal.SIGHUP, lambda: loop.end(3))
    os.kill(os.getpid(), signal.SIGHUP)
    assert loop.run() == 3


def test_a_hang_up_can_be_waited_for_alone(loop: Loop) -> None:
    inside, outside = os.pipe()
    seen: list[int] = []
    loop.watch(inside, HANG_UP, seen.append)
    os.write(outside, b"data")
    loop.later(0.0, lambda: None)
    loop.turn()
    assert not seen
    os.close(outside)
    loop.turn()
    assert seen == [HANG_UP]
    loop.forget(inside)
    assert not loop.is_watched(inside)
    os.close(inside)


def test_whoever_forgets_in_a_callback_hears_no_more(loop: Loop) -> None:
    pairs = [os.pipe() for _ in range(2)]
    heard: list[int] = []

    def hear(fd: int, other: int) -> None:
        heard.append(fd)
        loop.forget(other)

    (one, _), (two, _) = pairs
    loop.watch(one, READ, lambda _: hear(one, two))
    loop.watch(two, READ, lambda _: hear(two, one))
    for _, outside in pairs:
        os.write(outside, b"x")
    loop.turn()
    assert len(heard) == 1
    for fd in (fd for both in pairs for fd in both):
        loop.forget(fd)
        os.close(fd)

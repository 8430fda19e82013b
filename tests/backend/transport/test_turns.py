from __future__ import annotations

import asyncio
import time

import pytest

from ballast.transport.turns import BUDGET_SECONDS, PERIOD_SECONDS, Turn, Turns, shared_turns


def lazy(log: list[str], name: str) -> Turn:
    """Return work that takes a whole turn's budget."""

    def work() -> None:
        log.append(name)
        end = time.monotonic() + BUDGET_SECONDS
        while time.monotonic() < end:
            pass

    return Turn(work)


async def test_all_rings_of_a_loop_share_a_line() -> None:
    assert shared_turns() is shared_turns()


async def test_the_first_is_served_at_once_and_the_others_turn_by_turn() -> None:
    log: list[str] = []
    turns = Turns()
    for name in "abc":
        turns.take(lazy(log, name))
    assert log == ["a"]
    await asyncio.sleep(0)
    assert log == ["a", "b"]
    # Whoever comes now stands behind those that wait.
    turns.take(lazy(log, "d"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["a", "b", "c", "d"]


async def test_others_are_heard_between_two_turns() -> None:
    log: list[str] = []
    turns = Turns()
    for name in "abc":
        turns.take(lazy(log, name))
    asyncio.get_running_loop().call_soon(log.append, "operator")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["a", "b", "operator", "c"]


async def test_one_that_comes_back_lets_the_others_go_first() -> None:
    log: list[str] = []
    turns = Turns()
    turns.take(lazy(log, "a"))
    turns.take(lazy(log, "b"))
    turns.queue(lazy(log, "a again"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert log == ["a", "b", "a again"]


async def test_work_that_was_called_off_is_not_done_and_costs_nobody_a_turn() -> None:
    log: list[str] = []
    turns = Turns()
    turns.take(lazy(log, "a"))
    called_off = lazy(log, "b")
    turns.take(called_off)
    turns.take(lazy(log, "c"))
    assert called_off.is_waiting
    called_off.cancel()
    assert not called_off.is_waiting
    await asyncio.sleep(0)
    assert log == ["a", "c"]


async def test_the_budget_comes_back_with_time_though_no_turn_of_the_loop_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log: list[str] = []

    def work(name: str) -> Turn:
        def spend() -> None:
            nonlocal now
            now += BUDGET_SECONDS
            log.append(name)

        return Turn(spend)

    turns = Turns()
    turns.take(work("a"))
    waiting = work("b")
    turns.take(waiting)
    assert (log, waiting.is_waiting) == (["a"], True)
    waiting.cancel()
    await asyncio.sleep(0)
    now += PERIOD_SECONDS
    turns.take(work("c"))
    assert log == ["a", "c"]

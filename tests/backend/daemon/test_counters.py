"""Counters that go on in the next process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ballast.daemon import counters
from ballast.daemon.counters import CountersState, KeptCounters
from support.backend import until


@dataclass
class Calls:
    made: int = 0
    lost: int = 0


def test_what_was_told_is_never_taken_back() -> None:
    saved: list[CountersState] = []
    calls = Calls(made=3)
    first = KeptCounters({"calls": calls}, None, saved.append)
    assert first.told("calls") == {"made": 3, "lost": 0}
    calls.made += 1
    assert first.told("calls") == {"made": 4, "lost": 0}
    first.keep()
    assert len(saved) == 2
    calls.made += 1  # and nobody was told

    successor = Calls(lost=1)
    second = KeptCounters({"calls": successor}, saved[-1], saved.append)
    assert second.told("calls") == {"made": 4, "lost": 0}
    successor.made += 1
    assert second.told("calls") == {"made": 5, "lost": 0}


def test_another_version_s_counters_do_no_harm() -> None:
    calls, saved = Calls(), list[CountersState]()
    left = CountersState({"calls": {"made": 2, "returned": 9}, "letters": {"sent": 1}})
    kept = KeptCounters({"calls": calls, "new": Calls()}, left, saved.append)
    assert (calls.made, hasattr(calls, "returned")) == (2, False)
    assert kept.told("new") == {"made": 0, "lost": 0}


async def test_they_are_kept_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "KEEP_SECONDS", 0.001)
    calls, saved = Calls(), list[CountersState]()
    kept = KeptCounters({"calls": calls}, None, saved.append)
    kept.start()
    calls.made = 7
    await until(lambda: saved[-1].groups["calls"]["made"] == 7)
    kept.close()

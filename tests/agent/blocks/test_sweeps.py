from __future__ import annotations

from ballast_agent.blocks.sweeps import (
    LOOK_SECONDS,
    MAX_PAUSE_SECONDS,
    MIN_PAUSE_SECONDS,
    SweepRun,
    SweepSchedule,
)
from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, SetSweeps

GIB = 1 << 30


def never() -> int:
    raise AssertionError("what is free need not be known")


def swept(reported: int, freed: int) -> SweepRun:
    return SweepRun(0, ANY_NODE, 0.0, reported_bytes=reported, freed_bytes=freed)


def test_nothing_is_due_unless_somebody_wants_it() -> None:
    schedule = SweepSchedule(SetSweeps())
    schedule.start(0.0)
    assert schedule.deadline() is None
    assert not schedule.is_due(never, 1e9)


def test_sweeps_at_intervals_are_counted_from_the_end_of_the_last() -> None:
    schedule = SweepSchedule(SetSweeps(every_seconds=60.0))
    schedule.start(100.0)
    assert schedule.deadline() == 160.0
    assert not schedule.is_due(never, 159.9)
    assert schedule.is_due(never, 160.0)
    schedule.swept(swept(GIB, GIB), 0, 170.0)
    assert schedule.deadline() == 230.0


def test_memory_has_to_become_free_to_be_swept() -> None:
    schedule = SweepSchedule(SetSweeps(when_free_bytes=GIB))
    schedule.start(0.0)
    assert not schedule.is_due(lambda: GIB - 1, 0.0)
    assert not schedule.is_due(never, LOOK_SECONDS - 0.1)
    assert schedule.is_due(lambda: GIB, LOOK_SECONDS)
    schedule.swept(swept(GIB, GIB), GIB, 10.0)
    now = 10.0 + MIN_PAUSE_SECONDS
    assert schedule.deadline() == now
    assert not schedule.is_due(lambda: GIB + 5, now)
    assert not schedule.is_due(lambda: 0, now + 10.0)
    assert schedule.is_due(lambda: GIB, now + 20.0)


def test_sweeps_that_gain_little_come_less_often() -> None:
    schedule = SweepSchedule(SetSweeps(when_free_bytes=GIB))
    schedule.start(0.0)
    pauses = []
    for _ in range(9):
        schedule.swept(swept(GIB, GIB // 5), GIB, 0.0)
        deadline = schedule.deadline()
        assert deadline is not None
        pauses.append(deadline)
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert pauses[-1] == MAX_PAUSE_SECONDS
    schedule.swept(swept(GIB, GIB // 3), GIB, 0.0)
    assert schedule.deadline() == MIN_PAUSE_SECONDS
    schedule.swept(swept(BLOCK_BYTES // 2, BLOCK_BYTES // 2), GIB, 0.0)
    assert schedule.deadline() == 2 * MIN_PAUSE_SECONDS, "a sweep that finds nothing gains little"


def test_what_the_host_is_told() -> None:
    run = SweepRun(7, 1, 5.0, 10, 9, 100, 50, "no more")
    assert (run.looks_at(1), run.looks_at(0)) == (True, False)
    done = run.done(6.5)
    assert (done.seconds, done.reason) == (1.5, "no more")
    assert (done.tried_blocks, done.isolated_blocks) == (10, 9)
    assert (done.reported_bytes, done.freed_bytes) == (100, 50)

from __future__ import annotations

import pytest

from ballast_agent.blocks.limits import (
    AGAIN_SECONDS,
    CALM_SECONDS,
    FASTEST_BYTES_PER_SECOND,
    HOLD_OFF_SECONDS,
    MAX_HOLD_OFF_SECONDS,
    MAX_RESERVE_BYTES,
    MAX_WATCH_SECONDS,
    MIB,
    MIN_RESERVE_BYTES,
    MIN_WATCH_SECONDS,
    Limits,
    Pressure,
)
from ballast_protocol.guest_blocks import BLOCK_BYTES

LIMITS = Limits(100 * MIB)


def test_the_reserve_is_a_share_within_bounds() -> None:
    assert Limits.of(1 << 28).reserve_bytes == MIN_RESERVE_BYTES
    assert Limits.of(4 << 30).reserve_bytes == (4 << 30) // 20
    assert Limits.of(1 << 40).reserve_bytes == MAX_RESERVE_BYTES
    assert Limits.of(4 << 30, 7 * MIB).reserve_bytes == 7 * MIB


def test_taking_stops_well_above_the_alarm() -> None:
    for sweeping, reserve in ((False, 100 * MIB), (True, 50 * MIB)):
        assert LIMITS.alarm_bytes(sweeping=sweeping) == reserve // 2
        assert LIMITS.spare_blocks(reserve + BLOCK_BYTES - 1, sweeping=sweeping) == 0
        assert LIMITS.spare_blocks(reserve + BLOCK_BYTES, sweeping=sweeping) == 1
        assert LIMITS.spare_blocks(0, sweeping=sweeping) == 0


@pytest.mark.parametrize("sweeping", [False, True])
def test_the_fastest_guest_is_seen_to_be_short_before_it_has_nothing_left(sweeping: bool) -> None:
    for reserve in (MIN_RESERVE_BYTES, MAX_RESERVE_BYTES):
        limits = Limits(reserve)
        available = 100 * reserve
        while available >= limits.alarm_bytes(sweeping=sweeping):
            pause = limits.watch_seconds(available, sweeping=sweeping)
            assert MIN_WATCH_SECONDS <= pause <= MAX_WATCH_SECONDS
            available -= int(pause * FASTEST_BYTES_PER_SECOND)
        assert available > 0


def test_what_is_pressure() -> None:
    pressure = Pressure(LIMITS)

    def look(available: int, *, stalled: bool = False, sweeping: bool = False) -> bool:
        return pressure.look(available * MIB, stalled=stalled, sweeping=sweeping)

    assert look(49)
    assert not look(51)
    assert look(51, stalled=True)
    assert look(399, stalled=True)
    assert not look(401, stalled=True)
    assert not look(26, sweeping=True)
    assert look(24, sweeping=True)
    assert not look(30, sweeping=True, stalled=True), "a sweep itself makes others wait"


def test_enough_goes_back_at_once() -> None:
    assert Pressure(LIMITS).respond(40 * MIB, 1000, 0.0) == 250
    assert Pressure(LIMITS).respond(40 * MIB, 100, 0.0) == 80
    assert Pressure(LIMITS).respond(40 * MIB, 30, 0.0) == 30
    pressure = Pressure(LIMITS)
    pressure.respond(40 * MIB, 1000, 0.0)
    assert pressure.respond(40 * MIB, 750, AGAIN_SECONDS - 0.1) == 750


def test_nothing_is_taken_for_longer_each_time_that_pressure_comes_back() -> None:
    pressure = Pressure(LIMITS)
    assert not pressure.is_on(0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        pressure.respond(0, 10, now)
        assert pressure.ends is not None
        pauses.append(pressure.ends - now)
        assert pressure.is_on(pressure.ends - 0.1)
        now = pressure.ends + 1.0
        assert not pressure.is_on(now)
    assert pauses == [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert (pauses[0], pauses[-1]) == (HOLD_OFF_SECONDS, MAX_HOLD_OFF_SECONDS)
    now += CALM_SECONDS
    pressure.respond(0, 10, now)
    assert pressure.ends == now + HOLD_OFF_SECONDS

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.policy.governor import Governor
from ballast.policy.pace import MIN_STEP_BYTES, Pace
from ballast.policy.resize import OnFailure, Outcome, ResizeRequest
from support.resizing_guest import GIB, MIB, RAM_BYTES, ResizingGuest


def test_a_limit_spreads_the_target_over_time() -> None:
    guest = ResizingGuest()
    request = ResizeRequest(GIB, rate_bytes=256 * MIB)
    guest.governor.start_resize(request, guest.seen, guest.now)
    begun = guest.now
    guest.look()
    assert guest.asked_bytes == RAM_BYTES
    guest.run(20)
    (result,) = guest.results
    assert result.outcome is Outcome.REACHED
    assert 12 <= result.seconds <= 13
    for when, asked in guest.asked:
        assert RAM_BYTES - asked <= 256 * MIB * (when - begun) + 4096
    assert len(guest.asked) > 100


def test_memory_is_given_back_at_once_whatever_the_limit() -> None:
    guest = ResizingGuest(Governor(target_bytes=GIB, own_rate_bytes=MIB), actual_bytes=GIB)
    guest.governor.set_target(3 * GIB, guest.seen, guest.now)
    assert guest.asked_bytes == 3 * GIB


def test_a_call_s_own_limit_goes_before_the_vm_s() -> None:
    guest = ResizingGuest(Governor(own_rate_bytes=MIB))
    guest.governor.start_resize(ResizeRequest(GIB, rate_bytes=0), guest.seen, guest.now)
    assert guest.asked_bytes == GIB
    guest.governor.set_target(GIB - MIB, guest.seen, guest.now)
    guest.run(0.25)
    assert guest.governor.pace.rate_bytes == MIB
    assert guest.asked_bytes > GIB


def test_a_guest_that_boots_is_paced_from_the_start() -> None:
    guest = ResizingGuest(
        Governor(target_bytes=GIB, own_rate_bytes=100 * MIB), actual_bytes=None, is_running=False
    )
    guest.boot()
    assert guest.asked_bytes == RAM_BYTES
    guest.run(10)
    assert RAM_BYTES - 1100 * MIB < guest.asked_bytes < RAM_BYTES - 800 * MIB
    guest.run(60)
    assert guest.actual_bytes == GIB


def test_a_stuck_guest_is_not_asked_to_run_ahead() -> None:
    guest = ResizingGuest(Governor(own_rate_bytes=100 * MIB), floor_bytes=3 * GIB)
    guest.governor.set_target(GIB, guest.seen, guest.now)
    guest.run(100)
    step = guest.governor.pace.step_bytes
    assert 3 * GIB - 3 * step <= guest.asked_bytes < 3 * GIB
    guest.floor_bytes, freed = 0, guest.now
    guest.run(5)
    assert guest.actual_bytes is not None
    assert 3 * GIB - guest.actual_bytes <= 100 * MIB * (guest.now - freed) + 3 * step


def test_a_stall_is_noticed_under_a_limit_too() -> None:
    guest = ResizingGuest(floor_bytes=3 * GIB)
    request = ResizeRequest(
        GIB, rate_bytes=200 * MIB, timeout_seconds=3600, on_failure=OnFailure.SETTLE
    )
    guest.governor.start_resize(request, guest.seen, guest.now)
    guest.run(60)
    (result,) = guest.results
    assert (result.outcome, result.final_bytes) == (Outcome.STALLED, 3 * GIB)
    assert guest.asked_bytes == 3 * GIB


def test_a_very_low_limit_is_not_a_stall() -> None:
    guest = ResizingGuest()
    request = ResizeRequest(
        RAM_BYTES - 10 * MIB, rate_bytes=64 << 10, timeout_seconds=3600, stall_seconds=5
    )
    guest.governor.start_resize(request, guest.seen, guest.now)
    guest.run(200)
    assert [each.outcome for each in guest.results] == [Outcome.REACHED]
    assert guest.results[0].seconds >= 150


@given(
    rate=st.integers(1, 1 << 40),
    start=st.integers(1, 1 << 20),
    wanted=st.integers(1, 1 << 20),
    pauses=st.lists(st.floats(0, 10), max_size=50),
)
@settings(deadline=None)
def test_no_faster_than_the_limit_and_always_onwards(
    rate: int, start: int, wanted: int, pauses: list[float]
) -> None:
    start_bytes, wanted_bytes = start * 4096, min(start, wanted) * 4096
    pace, asked, now = Pace(rate), start_bytes, 0.0
    for pause in pauses:
        now += pause
        next_asked = pace.next_ask(asked, wanted_bytes, asked, now)
        assert wanted_bytes <= next_asked <= asked
        assert next_asked % 4096 == 0
        asked = next_asked
        assert start_bytes - asked <= rate * now + 4096
        due = pace.next_step(asked, wanted_bytes)
        assert (due is None) == (asked == wanted_bytes)
        assert due is None or due > now - pace.step_bytes / rate


def test_steps_are_no_smaller_than_a_buffer() -> None:
    assert Pace(1).step_bytes == MIN_STEP_BYTES
    assert Pace(GIB).step_bytes == GIB // 10 // 4096 * 4096

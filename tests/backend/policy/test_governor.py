from __future__ import annotations

import pytest

from ballast.policy.governor import Governor, HeldError, InhibitedError
from ballast.policy.resize import GuestState, OnFailure, Outcome, ResizeRequest
from ballast.policy.result import ResizeResult
from ballast_protocol.errors import OperatorError
from support.resizing_guest import GIB, MIB, RAM_BYTES, ResizingGuest


def start(guest: ResizingGuest, target_bytes: int, **options: object) -> int:
    request = ResizeRequest(target_bytes, **options)  # type: ignore[arg-type]
    number = guest.governor.start_resize(request, guest.seen, guest.now)
    guest.look()
    return number


def only(guest: ResizingGuest) -> ResizeResult:
    (result,) = guest.results
    return result


def test_a_guest_that_follows_reaches_its_target() -> None:
    guest = ResizingGuest()
    number = start(guest, GIB)
    guest.run(5)
    result = only(guest)
    assert (result.id, result.outcome, result.guest) == (
        number,
        Outcome.REACHED,
        GuestState.SETTLED,
    )
    assert (result.initial_bytes, result.final_bytes, result.wanted_bytes) == (RAM_BYTES, GIB, GIB)
    assert result.moved_bytes == 3 * GIB
    assert 3 <= result.seconds <= 3.5
    assert result.explanation == "the guest has 1 GiB"


def test_growing_is_watched_too() -> None:
    guest = ResizingGuest(Governor(target_bytes=GIB), actual_bytes=GIB)
    start(guest, 3 * GIB)
    guest.run(5)
    assert (only(guest).outcome, only(guest).moved_bytes) == (Outcome.REACHED, 2 * GIB)


def test_a_size_that_the_guest_has_is_reached_at_once() -> None:
    guest = ResizingGuest()
    start(guest, 100 * GIB)
    assert (only(guest).outcome, only(guest).wanted_bytes) == (Outcome.REACHED, RAM_BYTES)


def test_a_size_between_pages_is_reached() -> None:
    guest = ResizingGuest()
    start(guest, GIB + 1)
    guest.run(5)
    assert (only(guest).outcome, only(guest).final_bytes) == (Outcome.REACHED, GIB + 4096)


def test_a_guest_that_is_out_of_memory_is_stalled_long_before_the_deadline() -> None:
    guest = ResizingGuest(floor_bytes=2 * GIB)
    start(guest, GIB, timeout_seconds=3600)
    guest.run(60)
    result = only(guest)
    assert (result.outcome, result.guest) == (Outcome.STALLED, GuestState.STALLED)
    assert result.final_bytes == 2 * GIB
    assert 12 <= result.seconds <= 13
    assert result.explanation == (
        "the guest stays at 2 GiB: it keeps trying, but finds no memory to give up; "
        "the target stays 1 GiB"
    )


def test_a_page_now_and_then_is_no_progress() -> None:
    guest = ResizingGuest(speed_bytes=8192)
    start(guest, GIB, timeout_seconds=3600)
    guest.run(60)
    assert only(guest).outcome is Outcome.STALLED


def test_a_mute_guest_is_told_from_one_that_tries() -> None:
    guest = ResizingGuest(is_mute=True, floor_bytes=2 * GIB)
    start(guest, GIB)
    guest.run(30)
    assert "the guest stays at 2 GiB: it does nothing" in only(guest).explanation


def test_a_guest_that_never_deflates() -> None:
    guest = ResizingGuest(Governor(target_bytes=GIB), actual_bytes=GIB, speed_bytes=0)
    start(guest, 2 * GIB)
    guest.run(30)
    assert only(guest).outcome is Outcome.STALLED
    assert "does not take its memory back" in only(guest).explanation


def test_without_a_stall_time_only_the_deadline_counts() -> None:
    guest = ResizingGuest(floor_bytes=2 * GIB, attempts=None)
    start(guest, GIB, timeout_seconds=100, stall_seconds=0)
    guest.run(200)
    result = only(guest)
    assert (result.outcome, result.guest) == (Outcome.TIMED_OUT, GuestState.STALLED)
    assert result.seconds == pytest.approx(100)
    assert "had 2 GiB of 1 GiB after 100 s: it gives nothing more up" in result.explanation


def test_a_slow_guest_is_called_so_and_times_out() -> None:
    guest = ResizingGuest(speed_bytes=10 * MIB)
    start(guest, GIB, timeout_seconds=60)
    guest.run(5)
    assert guest.governor.guest_state(guest.seen, guest.now) is GuestState.SLOW
    guest.run(60)
    assert (only(guest).outcome, only(guest).guest) == (Outcome.TIMED_OUT, GuestState.SLOW)
    assert "still moving" in only(guest).explanation


def test_a_paused_guest_is_not_stalled() -> None:
    guest = ResizingGuest()
    start(guest, GIB, timeout_seconds=100)
    guest.run(1)
    guest.stop()
    guest.run(60)
    assert guest.governor.guest_state(guest.seen, guest.now) is GuestState.PAUSED
    assert not guest.results
    guest.resume()
    guest.run(5)
    assert only(guest).outcome is Outcome.REACHED


def test_a_guest_that_stays_paused_times_out_and_is_said_to_be() -> None:
    guest = ResizingGuest()
    start(guest, GIB, timeout_seconds=20)
    guest.stop()
    guest.run(30)
    assert (only(guest).outcome, only(guest).guest) == (Outcome.TIMED_OUT, GuestState.PAUSED)
    assert "paused" in only(guest).explanation


def test_a_driver_that_never_starts() -> None:
    guest = ResizingGuest(actual_bytes=None, is_running=False)
    start(guest, GIB, timeout_seconds=30)
    guest.run(60)
    result = only(guest)
    assert (result.outcome, result.guest) == (Outcome.TIMED_OUT, GuestState.NO_DRIVER)
    assert "driver has not started after 30 s" in result.explanation


def test_without_qemu_a_resize_waits_and_says_so() -> None:
    guest = ResizingGuest(actual_bytes=None, is_running=False, is_connected=False)
    start(guest, GIB, timeout_seconds=30)
    guest.run(60)
    result = only(guest)
    assert (result.outcome, result.guest) == (Outcome.TIMED_OUT, GuestState.NO_QEMU)
    assert (result.initial_bytes, result.moved_bytes) == (None, 0)
    assert "no QEMU has connected" in result.explanation


def test_qemu_that_goes_ends_a_resize() -> None:
    guest = ResizingGuest()
    start(guest, GIB)
    guest.run(1)
    guest.leave()
    assert only(guest).outcome is Outcome.DISCONNECTED
    assert guest.governor.target_bytes == GIB


def test_a_resize_begun_before_the_guest_is_reached_after_its_boot() -> None:
    guest = ResizingGuest(actual_bytes=None, is_running=False, is_connected=False)
    start(guest, GIB)
    guest.run(3)
    guest.is_connected = True
    guest.run(3)
    guest.boot()
    guest.run(5)
    assert (only(guest).outcome, only(guest).initial_bytes) == (Outcome.REACHED, RAM_BYTES)


def test_a_reboot_in_the_middle_is_not_a_stall() -> None:
    guest = ResizingGuest()
    start(guest, GIB)
    guest.run(2)
    guest.boot()
    guest.run(5)
    assert only(guest).outcome is Outcome.REACHED


# What becomes of the target


@pytest.mark.parametrize(
    ("then", "target", "words"),
    [
        (OnFailure.KEEP, GIB, "the target stays 1 GiB"),
        (OnFailure.SETTLE, 2 * GIB, "the target is now 2 GiB"),
        (OnFailure.ROLLBACK, 3 * GIB, "the target is 3 GiB again"),
    ],
)
def test_what_holds_after_a_failure(then: OnFailure, target: int, words: str) -> None:
    guest = ResizingGuest(Governor(target_bytes=3 * GIB), floor_bytes=2 * GIB)
    guest.run(2)
    start(guest, GIB, on_failure=then)
    guest.run(30)
    result = only(guest)
    assert result.outcome is Outcome.STALLED
    assert guest.governor.target_bytes == result.in_force_bytes == target
    assert result.is_rolled_back is (then is OnFailure.ROLLBACK)
    assert words in result.explanation
    assert result.as_dict()["target-bytes"] == target
    guest.run(5)
    assert guest.actual_bytes == max(target, 2 * GIB)


def test_a_roll_back_to_no_target_gives_all_back() -> None:
    guest = ResizingGuest(floor_bytes=2 * GIB)
    start(guest, GIB, on_failure=OnFailure.ROLLBACK)
    guest.run(30)
    assert guest.governor.target_bytes is None
    assert guest.actual_bytes == RAM_BYTES
    assert only(guest).in_force_bytes == RAM_BYTES


def test_a_newer_target_supersedes() -> None:
    guest = ResizingGuest(Governor(target_bytes=3 * GIB), floor_bytes=2 * GIB)
    start(guest, GIB, on_failure=OnFailure.ROLLBACK)
    guest.run(0.5)
    start(guest, GIB + MIB, on_failure=OnFailure.ROLLBACK)
    assert only(guest).outcome is Outcome.SUPERSEDED
    assert guest.governor.target_bytes == GIB + MIB
    guest.run(30)
    assert guest.results[1].outcome is Outcome.STALLED
    # Not to the target of the resize that never got there.
    assert guest.governor.target_bytes == 3 * GIB


def test_a_plain_target_supersedes_too() -> None:
    guest = ResizingGuest()
    start(guest, GIB, on_failure=OnFailure.ROLLBACK)
    guest.governor.set_target(2 * GIB, guest.seen, guest.now)
    guest.run(5)
    assert only(guest).outcome is Outcome.SUPERSEDED
    assert guest.actual_bytes == guest.governor.target_bytes == 2 * GIB


def test_cancel_stops_the_guest_where_it_is() -> None:
    guest = ResizingGuest()
    start(guest, GIB)
    guest.run(1)
    has = guest.actual_bytes
    result = guest.governor.cancel(OnFailure.SETTLE, guest.seen, guest.now)
    guest.run(5)
    assert guest.results == [result]
    assert (result.outcome, result.final_bytes) == (Outcome.CANCELLED, has)
    assert guest.actual_bytes == guest.governor.target_bytes == has
    assert (
        result.explanation == "cancelled when the guest had 3 GiB of 1 GiB; the target is now 3 GiB"
    )


def test_cancel_can_roll_back() -> None:
    guest = ResizingGuest(Governor(target_bytes=3 * GIB), actual_bytes=3 * GIB)
    start(guest, GIB)
    guest.run(1)
    guest.governor.cancel(OnFailure.ROLLBACK, guest.seen, guest.now)
    guest.run(5)
    assert guest.actual_bytes == 3 * GIB
    assert only(guest).is_rolled_back


def test_nothing_to_cancel() -> None:
    guest = ResizingGuest()
    with pytest.raises(OperatorError, match="no resize is in progress"):
        guest.governor.cancel(OnFailure.SETTLE, guest.seen, guest.now)


# Hold


def test_a_hold_ends_a_resize_and_refuses_the_next() -> None:
    guest = ResizingGuest()
    start(guest, GIB, on_failure=OnFailure.ROLLBACK)
    guest.run(1)
    guest.governor.hold("taking a snapshot", guest.seen, guest.now)
    guest.run(1)
    assert (only(guest).outcome, only(guest).is_rolled_back) == (Outcome.HELD, False)
    assert guest.governor.target_bytes == GIB
    with pytest.raises(HeldError, match="on hold: taking a snapshot") as caught:
        guest.governor.set_target(2 * GIB, guest.seen, guest.now)
    assert "--release" in caught.value.hint
    with pytest.raises(HeldError):
        start(guest, 2 * GIB)
    assert guest.governor.target_bytes == GIB
    guest.governor.release_hold()
    guest.governor.set_target(2 * GIB, guest.seen, guest.now)
    assert guest.governor.target_bytes == 2 * GIB


def test_a_hold_freezes_a_paced_target_where_it_has_come_to() -> None:
    guest = ResizingGuest()
    start(guest, GIB, rate_bytes=100 * MIB, timeout_seconds=600)
    guest.run(10)
    asked = guest.asked_bytes
    guest.governor.hold("", guest.seen, guest.now)
    guest.run(30)
    assert guest.governor.target_bytes == guest.asked_bytes == guest.actual_bytes == asked
    assert GIB < asked < RAM_BYTES - 900 * MIB
    assert only(guest).outcome is Outcome.HELD
    with pytest.raises(HeldError, match="no reason was given"):
        start(guest, GIB)


# Inhibit


def test_shrinking_is_refused_while_inhibited_and_growing_is_not() -> None:
    guest = ResizingGuest(Governor(target_bytes=2 * GIB), actual_bytes=2 * GIB)
    guest.governor.inhibit("a GPU is passed through", guest.seen, guest.now)
    with pytest.raises(InhibitedError, match="a GPU is passed through") as caught:
        start(guest, GIB)
    assert "--release" in caught.value.hint
    start(guest, 3 * GIB)
    guest.run(5)
    assert only(guest).outcome is Outcome.REACHED
    # As in QEMU: `balloon` is accepted, and the guest shrinks in vain.
    guest.governor.set_target(GIB, guest.seen, guest.now)
    guest.governor.release_inhibit()
    start(guest, GIB + MIB)


def test_inhibiting_ends_a_resize_that_shrinks() -> None:
    guest = ResizingGuest(Governor(target_bytes=3 * GIB))
    start(guest, GIB, on_failure=OnFailure.ROLLBACK)
    guest.run(0.5)
    guest.governor.inhibit("", guest.seen, guest.now)
    guest.run(5)
    assert (only(guest).outcome, only(guest).is_rolled_back) == (Outcome.INHIBITED, True)
    assert guest.actual_bytes == 3 * GIB


def test_inhibiting_lets_a_resize_go_on_that_grows() -> None:
    guest = ResizingGuest(Governor(target_bytes=GIB), actual_bytes=GIB)
    start(guest, 3 * GIB)
    guest.run(0.5)
    guest.governor.inhibit("", guest.seen, guest.now)
    guest.run(5)
    assert only(guest).outcome is Outcome.REACHED


def test_an_unknown_guest_cannot_be_shrunk_while_inhibited() -> None:
    guest = ResizingGuest(actual_bytes=None, is_connected=False, is_running=False)
    guest.governor.inhibit("", guest.seen, guest.now)
    with pytest.raises(InhibitedError):
        start(guest, GIB)


# What makes no sense


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_seconds": 0},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"stall_seconds": -1},
        {"stall_seconds": float("nan")},
        {"rate_bytes": -1},
    ],
)
def test_requests_that_make_no_sense(options: dict[str, object]) -> None:
    guest = ResizingGuest()
    with pytest.raises(OperatorError):
        start(guest, GIB, **options)
    assert guest.governor.target_bytes is None


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_no_guest_can_have(size: int) -> None:
    guest = ResizingGuest()
    with pytest.raises(OperatorError, match="cannot have"):
        guest.governor.set_target(size, guest.seen, guest.now)
    with pytest.raises(OperatorError, match="cannot have"):
        start(guest, size)

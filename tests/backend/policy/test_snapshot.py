from __future__ import annotations

import json

import pytest

from ballast.policy.governor import Governor
from ballast.policy.resize import OnFailure, Outcome, ResizeRequest
from ballast.policy.snapshot import restore, snapshot
from ballast_protocol.errors import OperatorError
from support.resizing_guest import GIB, MIB, ResizingGuest


def in_the_middle() -> ResizingGuest:
    guest = ResizingGuest(Governor(target_bytes=3 * GIB), floor_bytes=2 * GIB)
    request = ResizeRequest(
        GIB, timeout_seconds=90, rate_bytes=100 * MIB, on_failure=OnFailure.ROLLBACK
    )
    guest.governor.start_resize(request, guest.seen, guest.now)
    guest.run(2)
    return guest


def successor(guest: ResizingGuest) -> None:
    """Let another process go on, which knows nothing but the values, by way of JSON."""
    values = json.loads(json.dumps(snapshot(guest.governor)))
    guest.governor = Governor()
    restore(guest.governor, values, guest.now)


def test_a_resize_goes_on_and_ends_as_it_would_have() -> None:
    guest, undisturbed = in_the_middle(), in_the_middle()
    guest.run(1)
    successor(guest)
    guest.run(60)
    undisturbed.run(61)
    (result,), (expected,) = guest.results, undisturbed.results
    assert (result.outcome, result.id) == (expected.outcome, expected.id)
    assert result.outcome is Outcome.STALLED
    assert result.initial_bytes == expected.initial_bytes
    assert guest.governor.target_bytes == 3 * GIB


def test_the_time_without_a_process_counts_towards_the_deadline() -> None:
    guest = in_the_middle()
    guest.now += 100
    successor(guest)
    guest.look()
    assert guest.results[0].outcome is Outcome.TIMED_OUT
    assert guest.results[0].seconds == pytest.approx(102, abs=1)


def test_hold_and_inhibit_stay() -> None:
    guest = in_the_middle()
    guest.governor.hold("because", guest.seen, guest.now)
    guest.governor.inhibit("pinned", guest.seen, guest.now)
    successor(guest)
    assert (guest.governor.hold_reason, guest.governor.inhibit_reason) == ("because", "pinned")


def test_numbers_are_not_given_twice() -> None:
    guest = in_the_middle()
    successor(guest)
    assert guest.governor.start_resize(ResizeRequest(GIB), guest.seen, guest.now) == 2


def test_results_can_still_be_asked_for() -> None:
    guest = in_the_middle()
    guest.run(60)
    before = guest.governor.results
    successor(guest)
    assert guest.governor.results == before == guest.results


def test_what_an_older_version_did_not_save_is_not_missed() -> None:
    guest = in_the_middle()
    values = snapshot(guest.governor)
    del values["results"]
    restore(guest.governor, values, guest.now)
    assert guest.governor.results == []


def test_a_start_in_the_future_is_now() -> None:
    guest = in_the_middle()
    values = snapshot(guest.governor)
    restore(guest.governor, values, 5.0)
    assert guest.governor.resize is not None
    assert guest.governor.resize.started_at == 5.0


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"target-bytes": "1G"},
        {"asked-bytes": True},
        {"rate-bytes": -1},
        {"rate-bytes": None},
        {"hold-reason": 1},
        {"next-id": 1.5},
        {"resize": 1},
        {"resize": {}},
        {"resize": {"id": 1, "on-failure": "explode"}},
        {"results": 1},
        {"results": [1]},
        {"results": [{"id": 1, "tries": 3}]},
        {"results": [{"id": 1}] * 100},
    ],
)
def test_values_that_are_not_ours_change_nothing(change: dict[str, object]) -> None:
    guest = in_the_middle()
    before = snapshot(guest.governor)
    with pytest.raises(OperatorError, match="saved target"):
        restore(guest.governor, {**before, **change}, guest.now)
    missing = {key: value for key, value in before.items() if key != "hold-reason"}
    with pytest.raises(OperatorError, match="saved target"):
        restore(guest.governor, missing, guest.now)
    assert snapshot(guest.governor) == before

from __future__ import annotations

from ballast.keeper.backoff import MAX_SECONDS, BackOff


def test_the_first_failure_costs_no_time() -> None:
    assert BackOff().after(0.0) == 0.0


def test_failures_in_a_row_cost_more_and_more_up_to_a_bound() -> None:
    back_off = BackOff()
    pauses = [back_off.after(0.0) for _ in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[1:4] == [0.05, 0.1, 0.2]
    assert pauses[-1] == MAX_SECONDS


def test_a_worker_that_has_served_makes_up_for_them() -> None:
    back_off = BackOff()
    for _ in range(9):
        back_off.after(0.1)
    assert back_off.after(60.0) == 0.0
    assert back_off.after(0.1) == 0.0

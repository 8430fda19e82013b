from __future__ import annotations

import pytest

from ballast.soak.killing import Kill, Outcome, as_json, percentiles
from ballast.soak.report import table, verdict
from ballast.soak.verifier import Verdict


def kills(*gaps: float | None) -> list[Kill]:
    return [Kill("inflate", 0.1, gap) for gap in gaps]


def test_percentiles_are_of_the_gaps_that_were_seen() -> None:
    hundred = (n / 100 for n in range(1, 101))
    assert percentiles([*hundred, None]) == {"p50": 0.5, "p99": 0.99}
    assert percentiles([0.25]) == {"p50": 0.25, "p99": 0.25}
    assert percentiles([None]) == {"p50": None, "p99": None}


@pytest.mark.parametrize(
    ("outcome", "is_ok"),
    [
        (Outcome(), True),
        (Outcome(failure="QEMU ended"), False),
        (Outcome(ledger_mismatches=1), False),
        (Outcome(verdict=Verdict(8192, 4096)), False),
    ],
)
def test_anything_lost_is_a_failure(outcome: Outcome, is_ok: bool) -> None:
    assert outcome.is_ok is is_ok
    assert verdict(outcome).startswith("ok" if is_ok else "failed")


def test_a_stopped_worker_is_not_a_killed_one() -> None:
    outcome = Outcome(kills=[*kills(0.1, 0.2), Kill("pause", 0.5, was_stopped=True)])
    found = as_json(outcome, {})
    assert found["ok"] is True
    assert (found["kills"], found["stops"], found["gaps_measured"]) == (2, 1, 2)
    assert found["gap_seconds"] == {"p50": 0.1, "p99": 0.2}
    assert found["agent_gap_seconds"] == {"p50": None, "p99": None}
    assert table(outcome).row_count == 3


def test_a_verdict_counts_whole_pages() -> None:
    found = Verdict()
    found.add({"verified_bytes": 1 << 20, "wrong_pages": 2})
    found.add({"verified_bytes": 1 << 20, "wrong_pages": 0})
    assert (found.verified_bytes, found.wrong_bytes) == (2 << 20, 8192)

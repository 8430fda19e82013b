from __future__ import annotations

import pytest

from ballast.soak.report import storm_verdict
from ballast.soak.storm import StormOutcome
from ballast.soak.verifier import Verdict


@pytest.mark.parametrize(
    ("outcome", "is_ok"),
    [
        (StormOutcome(checks=1), True),
        (StormOutcome(checks=1, restless=1), True),
        (StormOutcome(), False),  # nothing was compared
        (StormOutcome(checks=1, failure="QEMU ended"), False),
        (StormOutcome(checks=1, ledger_mismatches=1), False),
        (StormOutcome(checks=1, oom_kills=1), False),
        (StormOutcome(checks=1, verdict=Verdict(8192, 4096)), False),
    ],
)
def test_anything_lost_is_a_failure(outcome: StormOutcome, is_ok: bool) -> None:
    assert outcome.is_ok is is_ok
    assert outcome.as_json({})["ok"] is is_ok
    assert ("ok" in storm_verdict(outcome).splitlines()) is is_ok


def test_the_outcome_tells_of_every_disturbance() -> None:
    outcome = StormOutcome(checks=2, done={"agent-kill": 3, "sweep": 5})
    found = outcome.as_json({})
    assert (found["agent_kills"], found["disturbances"]["sweep"]) == (3, 5)
    assert "3 x agent-kill, 5 x sweep" in storm_verdict(outcome)

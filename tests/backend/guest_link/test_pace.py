from __future__ import annotations

import pytest

from ballast.guest_link.pace import (
    BURST_SECONDS,
    DISCARD_BYTES_PER_SECOND,
    MESSAGE_COST_BYTES,
    READ_BYTES_PER_SECOND,
    Pace,
)


def test_a_short_burst_passes_at_once() -> None:
    pace = Pace()
    assert pace.spend(READ_BYTES_PER_SECOND // 2, 0, 0, now=100.0) == 0.0
    assert pace.spend(0, 0, DISCARD_BYTES_PER_SECOND // 2, now=100.0) == pytest.approx(0.0)


def test_who_says_more_has_to_wait() -> None:
    pace = Pace()
    messages = READ_BYTES_PER_SECOND // MESSAGE_COST_BYTES
    pace.spend(0, messages, 0, now=100.0)
    assert pace.spend(READ_BYTES_PER_SECOND // 4, 0, 0, now=100.0) == pytest.approx(0.25)
    assert pace.spend(0, 0, DISCARD_BYTES_PER_SECOND, now=100.25) == pytest.approx(1.0)


def test_a_guest_that_was_quiet_has_no_more_than_one_burst() -> None:
    pace = Pace()
    pace.spend(10 * READ_BYTES_PER_SECOND, 0, 0, now=100.0)
    spent = int(READ_BYTES_PER_SECOND * (BURST_SECONDS + 0.5))
    assert pace.spend(spent, 0, 0, now=1000.0) == pytest.approx(0.5)

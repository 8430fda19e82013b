from __future__ import annotations

from pathlib import Path

import pytest

from ballast.bench.plot import guest_kind, ring_kind, save_bars, scale_kind
from ballast.bench.report import speeds
from ballast.bench.rows import Measurement, Row, summarise
from ballast_protocol.errors import OperatorError

pytest.importorskip("matplotlib")


def rows() -> list[Row]:
    return summarise(
        Measurement("inflate", who, "default", "touched", seconds, 0.1, 1 << 30, pattern=pattern)
        for who in ("ballast/vhost-user", "floor")
        for pattern in ("descending", "shuffled")
        for seconds in (0.25, 0.5, 1.0)
    )


@pytest.mark.parametrize("kind", [guest_kind, ring_kind, scale_kind])
def test_every_contestant_and_every_kind_is_named(kind: object, tmp_path: Path) -> None:
    assert callable(kind)
    path = tmp_path / "bars.svg"
    save_bars(rows(), path, kind=kind, who=lambda row: row.who, value=speeds, unit="GiB/s")
    drawn = path.read_text()
    assert "<svg" in drawn
    assert "GiB/s" in drawn
    for name in ("ballast/vhost-user", "floor", kind(rows()[0]).splitlines()[0]):
        assert f"<!-- {name} -->" in drawn


def test_a_file_that_cannot_be_written_is_the_operators_fault(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "place.svg"
    with pytest.raises(OperatorError, match="cannot write"):
        save_bars(rows(), path, kind=ring_kind, who=lambda row: row.who, value=speeds, unit="s")


def test_speeds_are_the_median_and_every_round() -> None:
    assert speeds(rows()[0]) == [2.0, 4.0, 2.0, 1.0]

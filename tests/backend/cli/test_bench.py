from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ballast.bench.patterns import PATTERNS
from ballast.bench.rows import Measurement
from ballast.cli.main import app

runner = CliRunner()


def test_the_rings_are_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    arguments = ["bench", "ring", "-n", "1", "--size", "8M", "--pattern", "single"]
    result = runner.invoke(app, [*arguments, "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert "page-by-page" in result.output
    found = json.loads(path.read_text())
    assert {row["who"] for row in found["rows"]} == {"floor", "page-by-page", "ballast/vhost-user"}
    assert {row["pattern"] for row in found["rows"]} == {"single"}


def test_a_gibibyte_of_every_pattern_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def bench(patterns: Sequence[str], size: int, *rest: object) -> list[Measurement]:
        asked.append((list(patterns), size))
        return [Measurement("inflate", "floor", "none", "touched", 1.0, 1.0, 1 << 30)]

    monkeypatch.setattr("ballast.cli.bench.bench_ring", bench)
    result = runner.invoke(app, ["bench", "ring"])
    assert result.exit_code == 0, result.output
    assert asked == [(list(PATTERNS), 1 << 30)]


@pytest.mark.parametrize("arguments", [("ring", "--pattern", "x"), ("guest", "--who", "x")])
def test_what_does_not_exist_is_wrong_use(arguments: tuple[str, ...]) -> None:
    assert runner.invoke(app, ["bench", *arguments]).exit_code == 2

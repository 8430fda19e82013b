from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ballast.bench.contestants import cpu_seconds
from ballast.bench.rows import Measurement, as_json, machine_facts, summarise


def measurement(who: str, seconds: float, *, work: str = "inflate") -> Measurement:
    return Measurement(work, who, "default", "touched", seconds, seconds / 10, int(seconds * 100))


def test_rounds_become_medians_and_keep_every_value() -> None:
    rows = summarise(
        [measurement("a", 3.0), measurement("b", 9.0), measurement("a", 1.0), measurement("a", 2.0)]
    )
    assert [(row.who, row.seconds_median, row.seconds_all) for row in rows] == [
        ("a", 2.0, [3.0, 1.0, 2.0]),
        ("b", 9.0, [9.0]),
    ]
    assert rows[0].host_cpu_seconds_median == 0.2
    assert rows[0].freed_bytes_median == 200


def test_what_the_backend_spent_is_told_apart() -> None:
    rows = summarise(
        [
            *(replace(measurement("a", 1.0), backend_cpu_seconds=cpu) for cpu in (0.1, 0.3, 0.2)),
            measurement("b", 1.0),
        ]
    )
    assert [row.backend_cpu_seconds_median for row in rows] == [0.2, None]


def test_different_work_is_never_mixed() -> None:
    rows = summarise([measurement("a", 1.0), measurement("a", 2.0, work="deflate")])
    assert [row.work for row in rows] == ["inflate", "deflate"]


def test_the_data_has_the_promised_form() -> None:
    data = json.loads(
        json.dumps(
            as_json(machine_facts("tcg", "11.1.3", "6.12"), summarise([measurement("a", 1)]))
        )
    )
    assert data["machine"]["accelerator"] == "tcg"
    (row,) = data["rows"]
    assert (row["pattern"], row["vms"], row["latency_p99_seconds"]) == (None, 1, None)


def test_cpu_time_is_read_even_of_processes_with_odd_names(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("12 (a) b) S " + " ".join(["0"] * 10) + " 150 50 0 0\n")
    assert cpu_seconds(stat) == 2.0

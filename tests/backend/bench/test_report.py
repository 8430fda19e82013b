from __future__ import annotations

import io

from rich.console import Console

from ballast.bench.contestants import CONTESTANTS
from ballast.bench.report import WIDTH, tables
from ballast.bench.rows import Measurement, summarise


def printed(measurements: list[Measurement]) -> list[list[str]]:
    """Return the lines of each table on a terminal of 80 columns."""
    found = []
    for table in tables(summarise(measurements)):
        text = io.StringIO()
        Console(file=text, width=WIDTH).print(table)
        found.append([line.rstrip() for line in text.getvalue().splitlines()])
    return found


def test_every_word_fits_into_80_columns() -> None:
    measurements = [
        Measurement("deflate", who, "init_on_alloc=0", "untouched", 123.4567, 98.765, 1 << 30)
        for who in CONTESTANTS
    ]
    (lines,) = printed(measurements)
    for line, who in zip(lines[2:], CONTESTANTS, strict=True):
        assert len(line) <= WIDTH
        assert line.split()[:2] == ["deflate", who]
        assert "123.46-123.46" in line
        assert line.endswith("GiB")


def test_each_way_to_boot_and_to_use_memory_has_a_table() -> None:
    measurements = [
        Measurement(work, "qemu-builtin", boot, memory, 1.0, 0.1, 0)
        for boot in ("default", "init_on_alloc=0")
        for memory in ("untouched", "touched")
        for work in ("inflate", "deflate")
    ]
    found = printed(measurements)
    assert [lines[0] for lines in found] == [
        "untouched memory, the kernel's default boot",
        "touched memory, the kernel's default boot",
        "untouched memory, booted with init_on_alloc=0",
        "touched memory, booted with init_on_alloc=0",
    ]
    assert all([line.split()[0] for line in lines[2:]] == ["inflate", "deflate"] for lines in found)

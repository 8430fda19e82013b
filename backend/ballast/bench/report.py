"""The figures as tables, one for each kind of guest, narrow enough for any terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.table import Table

from ballast.bench.rows import Row
from ballast.sizes import format_size

WIDTH = 80
"""Columns that a table may take."""


def tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each way to boot the guest and to use its memory."""
    return [
        _table(f"{memory} memory, {_boot(boot)}", list(group))
        for (boot, memory), group in groupby(rows, lambda row: (row.boot, row.memory))
    ]


def _boot(boot: str) -> str:
    return "the kernel's default boot" if boot == "default" else f"booted with {boot}"


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in ("WORK", "WHO"):
        table.add_column(heading, no_wrap=True)
    for heading in ("SECONDS", "MIN-MAX", "HOST CPU", "FREED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.work,
            row.who,
            f"{row.seconds_median:.2f}",
            f"{min(row.seconds_all):.2f}-{max(row.seconds_all):.2f}",
            f"{row.host_cpu_seconds_median:.2f}",
            format_size(row.freed_bytes_median),
        )
    return table

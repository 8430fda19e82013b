"""The figures as tables, one for each kind of guest, narrow enough for any terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.table import Table

from ballast.bench.rows import Row
from ballast.bench.scale import Idle
from ballast.sizes import format_size

GIB = 1 << 30

WIDTH = 80
"""Columns that a table may take."""


def tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each way to boot the guest and to use its memory."""
    return [
        _table(f"{memory} memory, {_boot(boot)}", list(group))
        for (boot, memory), group in groupby(rows, lambda row: (row.boot, row.memory))
    ]


def ring_table(rows: Iterable[Row], depth: int) -> Table:
    """Return the patterns with their speed, and what a buffer and a GiB cost."""
    title = f"Inflating touched memory, {depth} buffers on the way"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in ("PATTERN", "WHO"):
        table.add_column(heading, no_wrap=True)
    for heading in ("GIB/S", "MIN-MAX", "OF FLOOR", "US/BUFFER", "CPU S/GIB"):
        table.add_column(heading, justify="right", no_wrap=True)
    floors = {row.pattern: _speed(row) for row in rows if row.who == "floor"}
    for row in rows:
        floor = floors.get(row.pattern)
        gib = row.freed_bytes_median / GIB
        table.add_row(
            *(row.pattern or "", row.who, f"{_speed(row):.2f}"),
            f"{gib / max(row.seconds_all):.2f}-{gib / min(row.seconds_all):.2f}",
            f"{_speed(row) / floor:.2f}" if floor else "-",
            f"{row.seconds_median / row.buffers * 1e6:.1f}" if row.buffers else "-",
            f"{row.host_cpu_seconds_median / gib:.3f}" if gib else "-",
        )
    return table


def scale_table(rows: Iterable[Row], idle: Iterable[Idle]) -> Table:
    """Return what each number of VMs does to throughput, to memory, and to whoever asks."""
    table = Table(
        title="All VMs but one inflate and deflate without pause",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    headings = ("VMS", "GIB/S", "CPU S/GIB", "KIB/IDLE VM", "QUERY P99 MS", "CONFIG P99 MS")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    memory = {each.vms: f"{each.bytes_per_vm / 1024:.0f}" for each in idle}
    for vms, group in groupby(sorted(rows, key=lambda row: row.vms), lambda row: row.vms):
        by_work = {row.work: row for row in group}
        work, gib = by_work["inflate"], by_work["inflate"].freed_bytes_median / GIB
        table.add_row(
            *(str(vms), f"{_speed(work):.2f}"),
            f"{work.host_cpu_seconds_median / gib:.3f}" if gib else "-",
            memory.get(vms, "-"),
            *(
                f"{(by_work[name].latency_p99_seconds or 0) * 1000:.1f}"
                for name in ("query-balloon", "config-change")
            ),
        )
    return table


def speeds(row: Row) -> list[float]:
    """Return GiB/s: the median, and after it every round."""
    gib = row.freed_bytes_median / GIB
    return [_speed(row), *(gib / seconds for seconds in row.seconds_all)]


def _speed(row: Row) -> float:
    return row.freed_bytes_median / GIB / row.seconds_median


def _boot(boot: str) -> str:
    return "the kernel's default boot" if boot == "default" else f"booted with {boot}"


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in ("WORK", "WHO"):
        table.add_column(heading, no_wrap=True)
    for heading in ("SECONDS", "MIN-MAX", "CPU S", "OURS", "FREED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        backend = row.backend_cpu_seconds_median
        table.add_row(
            row.work,
            row.who,
            f"{row.seconds_median:.2f}",
            f"{min(row.seconds_all):.2f}-{max(row.seconds_all):.2f}",
            f"{row.host_cpu_seconds_median:.2f}",
            "-" if backend is None else f"{backend:.2f}",
            format_size(row.freed_bytes_median),
        )
    return table

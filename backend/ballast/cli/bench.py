"""`ballast bench`: measure, against QEMU's own balloon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ballast.bench.contestants import CONTESTANTS, DEFAULT_CONTESTANTS
from ballast.bench.guest import GuestBench
from ballast.bench.patterns import PATTERNS
from ballast.bench.plot import guest_kind, ring_kind, save_bars, scale_kind
from ballast.bench.report import ring_table, scale_table, speeds, tables
from ballast.bench.ring import bench_ring
from ballast.bench.rows import Row, as_json, machine_facts, summarise
from ballast.bench.scale import bench_scale
from ballast.cli.common import QemuPath, console, size_argument, write_text
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu

app = typer.Typer(help="Measure Ballast against QEMU's own balloon, interleaved in one run.")


JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the results as SVG.")
]


@app.callback(no_args_is_help=True)
def bench() -> None:
    """Measure Ballast against QEMU's own balloon, interleaved in one run."""


def _check_who(names: list[str] | None) -> list[str] | None:
    """Refuse a contestant that does not exist, or one that is named twice.

    Raises:
        typer.BadParameter: So it is.
    """
    for name in names or []:
        if name not in CONTESTANTS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(CONTESTANTS)}")
    if names and len(set(names)) != len(names):
        raise typer.BadParameter("a contestant is named twice")
    return names


@app.command()
def guest(
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds of each.")] = 5,
    boot: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel command line to measure; repeat for several, '' is the default boot."
        ),
    ] = None,
    who: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            callback=_check_who,
            help=f"What to measure; repeat for several. One of {', '.join(CONTESTANTS)}.",
        ),
    ] = None,
    untouched: Annotated[
        bool, typer.Option("--untouched", help="Measure never touched memory too.")
    ] = False,
    qemu: QemuPath = None,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Inflate and deflate 1 GiB of a 2 GiB guest, with Ballast and with QEMU's own balloon.

    Guests that differ in nothing else run side by side, each with 2 GiB of memory, and take turns.
    Debian's kernels zero every page that they allocate, which hides the balloon's own cost; so a
    boot with `init_on_alloc=0` is measured too. CPU is that of QEMU, without the threads that run
    the guest, and of the backend; OURS is what of it the backend spent.
    """
    reporter = ConsoleReporter()
    found = find_qemu(qemu, reporter=reporter)
    image = build_guest(reporter=reporter)
    accel = accelerator(found).name
    plan = GuestBench(
        qemu=found,
        image=image,
        accelerator=accel,
        rounds=rounds,
        boots=boot if boot is not None else ["", "init_on_alloc=0"],
        memories=["touched", "untouched"] if untouched else ["touched"],
        who=who or DEFAULT_CONTESTANTS,
        reporter=reporter,
    )
    rows = summarise(asyncio.run(plan.run()))
    for table in tables(rows):
        console.print(table)
    _write(json_file, machine_facts(accel, found.version, image.kernel_release), rows)
    if plot is not None:
        _plot(rows, plot, guest_kind, lambda row: [row.seconds_median, *row.seconds_all], "seconds")


def _check_patterns(names: list[str] | None) -> list[str] | None:
    """Refuse a pattern that does not exist.

    Raises:
        typer.BadParameter: So it is.
    """
    for name in names or []:
        if name not in PATTERNS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(PATTERNS)}")
    return names


@app.command()
def ring(
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds of each.")] = 5,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            callback=_check_patterns,
            help=f"What to play; repeat for several. One of {', '.join(PATTERNS)}.",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(parser=size_argument, metavar="SIZE", help="How much is given up.")
    ] = "1G",  # type: ignore[assignment]  # the parser makes a number of it
    depth: Annotated[
        int,
        typer.Option(min=1, max=128, help="Buffers on the way at once; Linux' driver has 1."),
    ] = 64,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Play patterns of page numbers through a daemon's ring, beside the raw system calls.

    No guest and no QEMU: a scripted front-end plays the driver, on memory that is populated before
    each round. Beside it stand the floor, which is `fallocate` on the same ranges without any ring,
    and QEMU's way, which is a `fallocate` and a `madvise` for each page.
    """
    rows = summarise(
        asyncio.run(bench_ring(pattern or list(PATTERNS), size, depth, rounds, ConsoleReporter()))
    )
    console.print(ring_table(rows, depth))
    _write(json_file, {**machine_facts("none", "none", "none"), "depth": depth}, rows)
    if plot is not None:
        _plot(rows, plot, ring_kind, speeds, "GiB/s")


@app.command()
def scale(
    vms: Annotated[
        list[int] | None,
        typer.Option("--vms", min=1, max=1024, help="How many VMs; repeat for several."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds of each.")] = 3,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Serve many VMs from one daemon, all but one of them inflating without pause.

    Scripted front-ends take the place of guests. The one VM that is idle is asked for its size, and
    given other targets, all the time: the 99th percentile of what that takes is shown, beside the
    throughput of all together and the memory that an idle VM costs.
    """
    found, idle = asyncio.run(bench_scale(vms or [1, 8, 64, 256], rounds, ConsoleReporter()))
    rows = summarise(found)
    console.print(scale_table(rows, idle))
    costs = {str(each.vms): each.bytes_per_vm for each in idle}
    _write(json_file, {**machine_facts("none", "none", "none"), "idle-bytes-per-vm": costs}, rows)
    if plot is not None:
        asked = [row for row in rows if row.latency_p99_seconds is not None]
        save_bars(
            asked,
            plot,
            kind=scale_kind,
            who=lambda row: row.work,
            value=lambda row: [(row.latency_p99_seconds or 0) * 1000],
            unit="99th percentile, ms",
        )


def _write(path: Path | None, facts: dict[str, object], rows: list[Row]) -> None:
    """Write the results as JSON, if a file was asked for."""
    if path is not None:
        write_text(path, json.dumps(as_json(facts, rows), indent=2) + "\n")


def _plot(
    rows: list[Row],
    path: Path,
    kind: Callable[[Row], str],
    value: Callable[[Row], Sequence[float]],
    unit: str,
) -> None:
    """Draw one bar for each contestant."""
    save_bars(rows, path, kind=kind, who=lambda row: row.who, value=value, unit=unit)

"""`ballast bench`: measure, against QEMU's own balloon."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ballast.bench.guest import GuestBench
from ballast.bench.rows import Row, as_json, machine_facts, summarise
from ballast.cli.common import QemuPath, console, write_text
from ballast.sizes import format_size
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu

app = typer.Typer(help="Measure Ballast against QEMU's own balloon, interleaved in one run.")


@app.callback(no_args_is_help=True)
def bench() -> None:
    """Measure Ballast against QEMU's own balloon, interleaved in one run."""


@app.command()
def guest(
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, help="Rounds of each.")] = 5,
    boot: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel command line to measure; repeat for several, '' is the default boot."
        ),
    ] = None,
    untouched: Annotated[
        bool, typer.Option("--untouched", help="Measure never touched memory too.")
    ] = False,
    qemu: QemuPath = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
) -> None:
    """Inflate and deflate 1 GiB of a 2 GiB guest, with Ballast and with QEMU's own balloon.

    Two guests that differ in nothing else take turns. Debian's kernels zero every page that they
    allocate, which hides the balloon's own cost; so a boot with `init_on_alloc=0` is measured too.
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
        reporter=reporter,
    )
    rows = summarise(asyncio.run(plan.run()))
    console.print(_table(rows))
    if json_file is not None:
        facts = machine_facts(accel, found.version, image.kernel_release)
        write_text(json_file, json.dumps(as_json(facts, rows), indent=2) + "\n")


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("BOOT", "MEMORY", "WORK", "WHO", "SECONDS", "MIN-MAX", "HOST CPU", "FREED"):
        left = title in ("BOOT", "MEMORY", "WORK", "WHO")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.boot,
            row.memory,
            row.work,
            row.who,
            f"{row.seconds_median:.2f}",
            f"{min(row.seconds_all):.2f}-{max(row.seconds_all):.2f}",
            f"{row.host_cpu_seconds_median:.2f}",
            format_size(row.freed_bytes_median),
        )
    return table

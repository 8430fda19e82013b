"""`ballast bench`: measure, against QEMU's own balloon."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from ballast.bench.contestants import CONTESTANTS, DEFAULT_CONTESTANTS
from ballast.bench.guest import GuestBench
from ballast.bench.report import tables
from ballast.bench.rows import as_json, machine_facts, summarise
from ballast.cli.common import QemuPath, console, write_text
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu

app = typer.Typer(help="Measure Ballast against QEMU's own balloon, interleaved in one run.")


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
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
) -> None:
    """Inflate and deflate 1 GiB of a 2 GiB guest, with Ballast and with QEMU's own balloon.

    Guests that differ in nothing else run side by side, each with 2 GiB of memory, and take turns.
    Debian's kernels zero every page that they allocate, which hides the balloon's own cost; so a
    boot with `init_on_alloc=0` is measured too.
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
    if json_file is not None:
        facts = machine_facts(accel, found.version, image.kernel_release)
        write_text(json_file, json.dumps(as_json(facts, rows), indent=2) + "\n")

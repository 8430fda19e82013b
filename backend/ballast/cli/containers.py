"""What the command line does with container engines: build images, and show the demo in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ballast.cli.common import JsonFlag, console, print_json, write_text
from ballast.demo.containers import ChargedStep, run_in_containers
from ballast.demo.tour import tour_table
from ballast_images.container_images import IMAGES, VM, build_images, checkout, outdated
from ballast_images.engine import ENGINE_VARIABLE, find_engine, prove
from ballast_images.progress import ConsoleReporter
from ballast_protocol.errors import OperatorError

EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="docker|podman",
        help=f"By default {ENGINE_VARIABLE}, or the first that answers.",
        show_default=False,
    ),
]


def build(
    base: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="A Debian 13 to build on; by default the public debian:trixie-slim, or where no "
            "registry is reached one that mmdebstrap makes here.",
            show_default=False,
        ),
    ] = None,
    engine: EngineName = None,
    as_json: JsonFlag = False,
) -> None:
    """Build the container images from this checkout: the backend, a broker, QEMU with a guest.

    What is here already and was built from the same sources is left alone.
    """
    found = find_engine(engine)
    images = build_images(found, checkout(), ConsoleReporter(), base=base)
    if as_json:
        print_json(
            [
                {"image": each.image.name, "size-bytes": each.size_bytes, "built": each.built}
                for each in images
            ]
        )
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("IMAGE", "MB", "", "WHAT"):
        table.add_column(title, justify="right" if title == "MB" else "left")
    for each in images:
        state = "built" if each.built else "current"
        table.add_row(each.image.name, str(each.size_bytes // 10**6), state, each.image.what)
    console.print(table)


def show_in_containers(engine: str | None, json_file: Path | None, progress: Console) -> None:
    """Run the demo through containers, and show what came of it.

    Raises:
        OperatorError: No engine works, images are missing, or memory did not move as it should.
    """
    found, root = find_engine(engine), checkout()
    if missing := [each for each in IMAGES if not found.has_image(each.name)]:
        raise OperatorError(
            f"{found.name} has no {', '.join(each.name for each in missing)}",
            hint="Build them with `make images`, or `ballast image containers`.",
        )
    if old := outdated(found, root):
        names = ", ".join(each.name for each in old)
        progress.print(f"Built from other sources than these: {names}", style="yellow")
    steps = run_in_containers(prove(found, VM.name), root, ConsoleReporter(progress))
    if json_file is not None:
        write_text(json_file, json.dumps([_as_json(each) for each in steps], indent=2) + "\n")
    _show(steps)
    if not all(each.ok for each in steps):
        raise OperatorError("memory did not move as it should; see the table")


def _as_json(step: ChargedStep) -> dict[str, object]:
    charge = {"charge_before_bytes": step.before_bytes, "charge_after_bytes": step.after_bytes}
    return {**step.step.as_json(), "ok": step.ok, **charge}


def _show(steps: list[ChargedStep]) -> None:
    charges = [f"{each.before_bytes >> 20} → {each.after_bytes >> 20}" for each in steps]
    verdicts = ["[green]ok[/green]" if each.ok else "[red]not ok[/red]" for each in steps]
    console.print(tour_table([each.step for each in steps], CHARGE=charges, CHARGED=verdicts))
    console.print(
        "[dim]ACTUAL: the guest. BOOKS: the worker. HOST: the blocks of the guest's memory file, "
        "before and after. CHARGE: what the kernel charges QEMU's container for.[/dim]"
    )

"""`ballast demo --vm`: the story of the demo on a VM that runs elsewhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import typer
from rich.console import Console

from ballast.cli.common import console, write_text
from ballast.daemon.paths import check_name
from ballast.demo.tour import DOES, TourStep, tour, tour_table
from ballast_protocol.errors import OperatorError

WAIT_SECONDS = 300.0
"""How long the VM may take to be there: its containers may just have been started."""

STANDARD_OUTPUT = Path("-")


def show_tour(vm: str, json_file: Path | None, progress: Console) -> None:
    """Take the tour, and show or write what came of it.

    Raises:
        OperatorError: Memory did not move as it should.
    """

    def show(name: str, step: TourStep | None) -> None:
        if json_file == STANDARD_OUTPUT:
            typer.echo(json.dumps(step.as_json() if step else {"begins": name}))
        elif step is None:
            progress.print(DOES[name], highlight=False)

    steps = asyncio.run(tour(check_name(vm), show, wait_seconds=WAIT_SECONDS))
    if json_file is None:
        console.print(tour_table(steps))
    elif json_file != STANDARD_OUTPUT:
        write_text(json_file, json.dumps([step.as_json() for step in steps], indent=2) + "\n")
    if not all(step.ok for step in steps):
        raise OperatorError("memory did not move as it should; see the steps")

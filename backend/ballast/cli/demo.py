"""`ballast demo`: see it work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ballast.cli.common import QemuPath, TransportName, Variant, console, write_text
from ballast.cli.containers import EngineName, show_in_containers
from ballast.cli.tour import show_tour
from ballast.daemon.config import VmConfig
from ballast.demo import report
from ballast.demo.run import run_demo
from ballast_images.progress import ConsoleReporter
from ballast_protocol.errors import OperatorError


def demo(
    vm: Annotated[
        str | None,
        typer.Option(
            "--vm",
            metavar="VM",
            help="Tell the story on a VM that runs already, started by `ballast launch VM "
            "--keeper` in another container for example. --json - prints a line for each step.",
        ),
    ] = None,
    containers: Annotated[
        bool,
        typer.Option(
            "--containers",
            help="Through containers, with docker or podman: QEMU in one, the worker in another. "
            "`make images` builds them.",
        ),
    ] = False,
    engine: EngineName = None,
    transport: TransportName = "vhost-user",
    variant: Variant = "msix-mapped",
    qemu: QemuPath = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the chart into an SVG file.")
    ] = None,
    append: Annotated[
        str, typer.Option(metavar="TEXT", help="More for the guest kernel's command line.")
    ] = "",
) -> None:
    """Boot a stock guest and watch its memory go back to the host, and return.

    A 2 GiB Debian guest dirties most of its memory and frees it, is asked over QMP to shrink to
    1 GiB and to grow again, fills its memory with a pattern and checks every byte, and gives its
    free memory back by free-page reporting. Exit status 0 only if the host's own figures say that
    memory really moved. The first run downloads QEMU and a guest; later ones start from the cache.
    """
    progress = Console(stderr=True)
    if vm is not None or containers:
        if qemu or plot or append or transport != "vhost-user" or (vm and containers):
            raise typer.BadParameter("--vm, or --containers with --engine, go with --json only")
        if vm is not None:
            show_tour(vm, json_file, progress)
        else:
            show_in_containers(engine, json_file, progress)
        return
    result, record = asyncio.run(
        run_demo(
            qemu,
            ConsoleReporter(progress),
            # What it tells of is the balloon that every guest's kernel has.
            config=VmConfig(name="demo", transport=transport, variant=variant, agent_blocks=False),
            kernel_arguments=tuple(append.split()),
            show=lambda line: progress.print(line, highlight=False),
        )
    )
    report.show(result, record, console)
    if json_file is not None:
        write_text(json_file, json.dumps(result.as_json(), indent=2) + "\n")
    if plot is not None:
        report.save_plot(record, plot)
    if not result.ok:
        raise OperatorError("the demo did not do what it should; see the table")

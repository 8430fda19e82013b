"""`ballast doctor`: what this machine has and lacks, each lack with its cure."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from ballast.cli.common import JsonFlag, QemuPath, console, print_json
from ballast.daemon.paths import runtime_root
from ballast_images.doctor import Check, probes

_MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]FAIL[/red]"}


def doctor(qemu: QemuPath = None, as_json: JsonFlag = False) -> None:
    """Look whether this machine can run Ballast, and say how to cure what it lacks.

    Nothing is downloaded or changed. The accelerator is proved by running something. Exit status 1
    if something that Ballast needs is missing; warnings cost speed or comfort only.
    """
    with Console(stderr=True).status("Looking around"):
        checks = list(probes(qemu, runtime_dir=runtime_root()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        console.print(_table(checks))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for check in checks:
        table.add_row(_MARKS[check.verdict], f"[bold]{check.name}[/bold]", check.detail)
        if check.cure:
            table.add_row("", "", f"[dim]{check.cure}[/dim]")
    return table

"""`ballast upgrade`: a new version under running guests."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from ballast.cli.common import JsonFlag, complete_vm, console, print_json, qmp_socket
from ballast.daemon.paths import served_names
from ballast.daemon.upgrade import Upgraded, keeper_status
from ballast.daemon.upgrade import upgrade as upgrade_daemon
from ballast_protocol.errors import OperatorError


def upgrade(
    vm: Annotated[
        str | None,
        typer.Argument(
            help="A VM of the daemon to upgrade; all daemons if left out.",
            autocompletion=complete_vm,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=1.0, help="Seconds that it may take.")
    ] = 90.0,
    as_json: JsonFlag = False,
) -> None:
    """Replace the processes that serve VMs by the version of Ballast that is installed now.

    Guests go on. A new process loads the new version and checks that it can take over; only
    then does the old one leave. If the new one fails, the old version goes on serving, and
    this command says why, with exit status 1. The daemon's configuration is read anew.
    """
    done = asyncio.run(_upgrade([vm] if vm else list(served_names()), timeout))
    if as_json:
        print_json([_values(names, each) for names, each in done])
        return
    if not done:
        console.print("No VM is being served.")
    for names, each in done:
        gap = "" if each.gap_seconds is None else f" after {each.gap_seconds * 1000:.0f} ms"
        console.print(
            f"{', '.join(names)}: process {each.old_pid} was replaced by {each.new_pid}{gap}",
            markup=False,
            highlight=False,
        )


async def _upgrade(names: list[str], timeout_seconds: float) -> list[tuple[list[str], Upgraded]]:
    """Upgrade every daemon once, whichever of its VMs are named."""
    by_worker: dict[object, list[str]] = {}
    for name in names:
        try:
            status = await keeper_status(qmp_socket(name))
        except OperatorError:
            if len(names) == 1:
                raise
            continue
        by_worker.setdefault(status.get("worker-pid"), []).append(name)
    return [
        (group, await upgrade_daemon(qmp_socket(group[0]), timeout_seconds))
        for group in by_worker.values()
    ]


def _values(names: list[str], upgraded: Upgraded) -> dict[str, object]:
    return {
        "vms": names,
        "old-pid": upgraded.old_pid,
        "new-pid": upgraded.new_pid,
        "gap-seconds": upgraded.gap_seconds,
    }

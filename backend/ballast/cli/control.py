"""`status`, `set` and `stats`: QMP clients of the VMs' sockets, like any other."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ballast.cli.common import (
    JsonFlag,
    VmName,
    complete_vm,
    console,
    dig,
    messages,
    print_json,
    qmp_socket,
    size_argument,
    size_cell,
)
from ballast.daemon.paths import served_names
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import STATISTIC_UNSET, STATISTICS, StatisticUnit

OptionalVm = Annotated[
    str | None,
    typer.Argument(help="One VM; all if left out.", autocompletion=complete_vm),
]


def status(vm: OptionalVm = None, as_json: JsonFlag = False) -> None:
    """Show VMs: what they should have, what they have, what the host holds.

    ACTUAL is what the guest says, BOOKS what Ballast knows to be given up, HOST what of the
    guest's memory the host really holds.
    """
    names = [vm] if vm else list(served_names())
    found = asyncio.run(_statuses(names, only=vm is not None))
    if as_json:
        print_json(found[0] if vm else found)
        return
    if not found:
        console.print("No VM is being served. Start one with `ballast launch` or `ballast serve`.")
        return
    console.print(_status_table(found))
    for each in found:
        if each.get("problem"):
            console.print(f"{each['name']}: {each['problem']}", style="bold red", markup=False)
    if vm:
        console.print(_detail_table(found[0]))


async def _statuses(names: list[str], *, only: bool) -> list[dict[str, object]]:
    """Ask every VM; one that has just gone is left out unless it was asked for by name."""
    found = []
    for name in names:
        try:
            async with qmp.connect(qmp_socket(name)) as client:
                found.append(await client.query("ballast-status"))
        except OperatorError:
            if only:
                raise
    return found


def _status_table(found: list[dict[str, object]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("VM", "STATE", "RAM", "TARGET", "ACTUAL", "BOOKS", "HOST", "AGENT"):
        table.add_column(title, justify="left" if title in ("VM", "STATE", "AGENT") else "right")
    for each in found:
        table.add_row(
            str(each["name"]),
            str(each["state"]),
            size_cell(each.get("ram-bytes")),
            size_cell(each.get("target-bytes")),
            size_cell(each.get("actual-bytes")),
            size_cell(dig(each, "ledger", "bytes")),
            size_cell(dig(each, "host", "allocated-bytes")),
            str(dig(each, "agent", "state") or "-"),
        )
    return table


def _detail_table(found: dict[str, object]) -> Table:
    """Return what is worth knowing of one VM beyond the overview."""
    table = Table(box=None, show_header=False, pad_edge=False)
    features = found.get("features")
    rows = {
        "QEMU's process": dig(found, "transport", "connection", "pid"),
        "features": ", ".join(map(str, features)) if isinstance(features, list) else None,
        "books minus guest": size_cell(dig(found, "ledger", "difference-bytes")),
        "host, QEMU's RssShmem": size_cell(dig(found, "host", "rss-shmem-bytes")),
        "given back so far": size_cell(dig(found, "counters", "discarded-bytes")),
        "free pages reported": size_cell(dig(found, "counters", "reported-bytes")),
        "guest kernel": dig(found, "agent", "agent", "kernel-release"),
        "agent": dig(found, "agent", "agent", "version"),
        "QMP clients": dig(found, "qmp", "clients"),
        "QMP clients dropped": dig(found, "qmp", "dropped"),
    }
    for name, value in rows.items():
        table.add_row(name, str(value) if value not in (None, "") else "-")
    return table


def set_target(
    vm: VmName,
    size: Annotated[
        int,
        typer.Argument(
            parser=size_argument,
            metavar="SIZE",
            help="What the guest should have: 1G, 512M, bytes.",
        ),
    ],
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Return when the guest has that size.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", help="Seconds to wait at most.", min=0.1)
    ] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a guest to shrink or grow to SIZE.

    The guest gives up what it can spare and may stop short of SIZE. Without `--wait`
    the command returns at once; with it, exit status 3 means that the guest did not get there in
    time (the target stays in force).
    """
    actual = asyncio.run(_set(vm, size, wait=wait, timeout_seconds=timeout))
    if as_json:
        print_json({"name": vm, "target-bytes": size, "actual-bytes": actual})
    elif actual is None:
        console.print(f"{vm}: asked for {size_cell(size)}", highlight=False)
    else:
        console.print(f"{vm}: has {size_cell(actual)}", highlight=False)


async def _set(vm: str, size: int, *, wait: bool, timeout_seconds: float) -> int | None:
    async with qmp.connect(qmp_socket(vm)) as client:
        ram = (await client.query("ballast-status")).get("ram-bytes")
        if isinstance(ram, int) and size > ram:
            note = (
                f"{vm} has {size_cell(ram)} in all; more cannot be given, so all of it is asked for"
            )
            messages.print(note, style="yellow", markup=False, highlight=False)
        if not wait:
            await client.execute("balloon", {"value": size})
            return None
        with _progress() as bar:
            task = bar.add_task(vm, total=None, now="")

            def show(progress: qmp.Progress) -> None:
                if progress.actual_bytes is not None:
                    start = bar.tasks[0].fields.setdefault("start", progress.actual_bytes)
                    total = abs(progress.wanted_bytes - start) or 1
                    done = total - min(abs(progress.wanted_bytes - progress.actual_bytes), total)
                    bar.update(
                        task, total=total, completed=done, now=size_cell(progress.actual_bytes)
                    )

            return await qmp.wait_for_target(client, size, timeout_seconds, show)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
        console=messages,
        transient=True,
    )


def stats(
    vm: VmName,
    fresh: Annotated[
        bool, typer.Option("--fresh/--last", help="Ask the guest now, or show what it last sent.")
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", help="Seconds the guest may take.", min=0.1)
    ] = 5.0,
    as_json: JsonFlag = False,
) -> None:
    """Show a guest's memory statistics, as its balloon driver counts them."""
    answer = asyncio.run(_stats(vm, fresh=fresh, timeout_seconds=timeout))
    if as_json:
        print_json(answer)
        return
    age = answer.get("age-seconds")
    when = f"{age:.1f} s old" if isinstance(age, float | int) else "never sent"
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"{vm}, {when}")
    table.add_column("STATISTIC")
    table.add_column("VALUE", justify="right")
    table.add_column("MEANING", style="dim")
    for each in STATISTICS:
        value = dig(answer, "stats", each.name)
        if value == STATISTIC_UNSET:
            shown = "-"
        else:
            shown = size_cell(value) if each.unit is StatisticUnit.BYTES else str(value)
        table.add_row(each.name, shown, each.meaning)
    console.print(table)


async def _stats(vm: str, *, fresh: bool, timeout_seconds: float) -> dict[str, object]:
    async with qmp.connect(qmp_socket(vm)) as client:
        return await client.query(
            "ballast-stats",
            {"fresh": fresh, "timeout": timeout_seconds},
            timeout_seconds=timeout_seconds + 5,
        )

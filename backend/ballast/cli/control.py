"""`status` and `stats`: QMP clients of the VMs' sockets, like any other."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from ballast.cli.common import (
    JsonFlag,
    VmName,
    complete_vm,
    console,
    dig,
    print_json,
    qmp_socket,
    size_cell,
)
from ballast.cli.keeper import restarts_text
from ballast.daemon.paths import served_names
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import STATISTIC_UNSET, STATISTICS, StatisticUnit

OptionalVm = Annotated[
    str | None,
    typer.Argument(help="One VM; all if left out.", autocompletion=complete_vm),
]


def status(
    vm: OptionalVm = None,
    as_json: JsonFlag = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Print nothing; exit status 1 unless there are VMs and all answer: for health "
            "checks.",
        ),
    ] = False,
) -> None:
    """Show VMs: what they should have, what they have, what the host holds.

    ACTUAL is what the guest says, BOOKS what Ballast knows to be given up, HOST what of the
    guest's memory the host really holds.
    """
    names = [vm] if vm else list(served_names())
    found = asyncio.run(_statuses(names, only=vm is not None))
    if check:
        _check_all_answer(names, [str(each["name"]) for each in found])
        return
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
        if text := restarts_text(each):
            console.print(f"{each['name']}: {text}", style="yellow", markup=False, highlight=False)
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


def _check_all_answer(names: list[str], answering: list[str]) -> None:
    """Raise OperatorError unless there are VMs, and all of them answer."""
    if not names:
        raise OperatorError("no VM is being served")
    if silent := sorted(set(names) - set(answering)):
        raise OperatorError(f"no answer from {', '.join(silent)}")


def _status_table(found: list[dict[str, object]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("VM", "STATE", "RAM", "TARGET", "ACTUAL", "BOOKS", "HOST", "AGENT"):
        table.add_column(title, justify="left" if title in ("VM", "STATE", "AGENT") else "right")
    for each in found:
        table.add_row(
            str(each["name"]),
            str(each["state"]),
            size_cell(each.get("ram-bytes")),
            _target_cell(each),
            size_cell(each.get("actual-bytes")),
            size_cell(dig(each, "ledger", "bytes")),
            _host_cell(each),
            str(dig(each, "agent", "state") or "-"),
        )
    return table


def _host_cell(found: dict[str, object]) -> str:
    """Return what the host holds; for a balloon of QEMU's own, all of QEMU's memory."""
    allocated = dig(found, "host", "allocated-bytes")
    return size_cell(dig(found, "host", "rss-bytes") if allocated is None else allocated)


def _qemu_pid(found: dict[str, object]) -> object:
    connected = dig(found, "transport", "connection", "pid")
    return dig(found, "qemu", "pid") if connected is None else connected


def _target_cell(found: dict[str, object]) -> str:
    held = dig(found, "resizing", "hold", "enabled")
    return size_cell(found.get("target-bytes")) + (" (held)" if held else "")


def _switch(found: dict[str, object], name: str) -> str | None:
    """Return why a switch is on; None if it is off."""
    if not dig(found, "resizing", name, "enabled"):
        return None
    return str(dig(found, "resizing", name, "reason") or "yes, no reason was given")


def _detail_table(found: dict[str, object]) -> Table:
    """Return what is worth knowing of one VM beyond the overview."""
    table = Table(box=None, show_header=False, pad_edge=False)
    features = found.get("features")
    rows = {
        "QEMU's process": _qemu_pid(found),
        "QEMU's QMP": dig(found, "qemu", "problem") or dig(found, "qemu", "socket"),
        "guest": dig(found, "resizing", "guest"),
        "target on hold": _switch(found, "hold"),
        "giving back inhibited": _switch(found, "inhibit"),
        "last resize": dig(found, "resizing", "last", "explanation"),
        "features": ", ".join(map(str, features)) if isinstance(features, list) else None,
        "books minus guest": size_cell(dig(found, "ledger", "difference-bytes")),
        "waits for whole host pages": size_cell(dig(found, "ledger", "waiting-bytes")),
        "host, QEMU's RssShmem": size_cell(dig(found, "host", "rss-shmem-bytes")),
        "given back so far": size_cell(dig(found, "counters", "discarded-bytes")),
        "free pages reported": size_cell(dig(found, "counters", "reported-bytes")),
        "held by the agent": size_cell(dig(found, "blocks", "held-bytes")),
        "takes no blocks": dig(found, "blocks", "obstacle"),
        "guest kernel": dig(found, "agent", "agent", "kernel-release"),
        "agent": dig(found, "agent", "agent", "version"),
        "process": dig(found, "keeper", "worker-pid"),
        "keeper": dig(found, "keeper", "keeper-pid"),
        "QMP clients": dig(found, "qmp", "clients"),
        "QMP clients dropped": dig(found, "qmp", "dropped"),
        "MQTT": _mqtt_cell(found),
    }
    for name, value in rows.items():
        table.add_row(name, str(value) if value not in (None, "") else "-")
    return table


def _mqtt_cell(found: dict[str, object]) -> str | None:
    """Return how the connection to the broker is, if there should be one."""
    url = dig(found, "mqtt", "url")
    if url is None:
        return None
    if dig(found, "mqtt", "connected"):
        return str(url)
    return f"{url}: {dig(found, 'mqtt', 'last-error') or 'connecting'}"


def stats(
    vm: VmName,
    max_age: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="What is younger need not be asked for again.",
            min=0.0,
        ),
    ] = 0.0,
    cached: Annotated[
        bool, typer.Option("--cached", help="Ask nobody: show what the guest sent last.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", help="Seconds the guest may take.", min=0.1, max=60)
    ] = 5.0,
    as_json: JsonFlag = False,
) -> None:
    """Show a guest's memory statistics, as its balloon driver counts them, and how old they are.

    The guest is asked for them. If it does not answer in time, exit status is 3 and nothing is
    shown: old values are not passed off as new ones.
    """
    answer = asyncio.run(_stats(vm, max_age=None if cached else max_age, timeout_seconds=timeout))
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


async def _stats(vm: str, *, max_age: float | None, timeout_seconds: float) -> dict[str, object]:
    arguments: dict[str, object] = {"timeout": timeout_seconds}
    if max_age == 0:
        arguments["fresh"] = True
    elif max_age is not None:
        arguments["max-age"] = max_age
    async with qmp.connect(qmp_socket(vm)) as client:
        return await client.query("ballast-stats", arguments, timeout_seconds=timeout_seconds + 5)

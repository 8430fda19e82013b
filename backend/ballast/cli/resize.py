"""`set`: asks a guest for a size, and with `--wait` says what came of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperCommand

from ballast.cli.common import (
    JsonFlag,
    VmName,
    console,
    dig,
    messages,
    print_json,
    qmp_socket,
    rate_argument,
    size_cell,
)
from ballast.policy.resize import MAX_SECONDS, Outcome
from ballast.qmp import client as qmp
from ballast.qmp.resizing import Follow, check_reached
from ballast.sizes import SizeWanted, parse_size_wanted
from ballast_protocol.errors import OperatorError

_LESS = re.compile(r"-\d.*")


class SizeCommand(TyperCommand):
    """A command whose last argument may be a size like `-1G`, which looks like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put such a size where it cannot be mistaken."""
        sizes = [each for each in args if _LESS.fullmatch(each)]
        if sizes and "--" not in args:
            args = [each for each in args if each not in sizes] + ["--", *sizes]
        return super().parse_args(ctx, args)


def _wanted(text: str) -> SizeWanted:
    try:
        return parse_size_wanted(text)
    except OperatorError as error:
        raise typer.BadParameter(
            f"{error}. Write 2G for a size, 50% of its RAM, +512M or -1G from its present target."
        ) from error


Size = Annotated[
    SizeWanted | None,
    typer.Argument(
        parser=_wanted,
        metavar="SIZE",
        help="What the guest should have: 2G, 512M, bytes; 50% of its RAM; +512M or -1G from its "
        "present target.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float,
    typer.Option("--timeout", "-t", help="Seconds that it may take.", min=0.1, max=MAX_SECONDS),
]
Stall = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Give up when the guest has not moved for so long; 0: not before the time-out.",
        min=0.0,
        max=MAX_SECONDS,
    ),
]
Rate = Annotated[
    int | None,
    typer.Option(
        parser=rate_argument,
        metavar="SIZE",
        help="What the guest gives up each second at most; 0: no limit. Else what the VM was "
        "configured with.",
        show_default=False,
    ),
]


def set_target(
    vm: VmName,
    size: Size = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Return when there is a result, and say it.")
    ] = False,
    timeout: Seconds = 60.0,
    stall_timeout: Stall = 10.0,
    rate: Rate = None,
    settle: Annotated[
        bool,
        typer.Option("--settle", help="If it fails, be content with what the guest has got to."),
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="If it fails, return to the target from before."),
    ] = False,
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="End a resize that is in progress; the guest stays where it is."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask a guest to shrink or grow to SIZE.

    The guest gives up what it can spare and may stop short of SIZE. Without `--wait` the command
    returns at once. With it the exit status is 0 if the guest has got there, 3 if it has not in
    time, and 1 if it stopped for another reason, which is said.

    The target holds whatever comes of it, unless `--settle` or `--rollback` is given. Leaving with
    Ctrl-C ends the waiting, not the resize; `--cancel` does.
    """
    if settle and rollback:
        raise typer.BadParameter("--settle and --rollback exclude each other")
    if cancel:
        if size is not None or settle or wait:
            raise typer.BadParameter("--cancel goes with --rollback and nothing else")
        _show(vm, asyncio.run(_cancel(vm, rollback=rollback)), as_json=as_json)
        return
    if size is None:
        raise typer.BadParameter("Missing argument 'SIZE'")
    then = "settle" if settle else "rollback" if rollback else "keep"
    request: dict[str, object] = {
        "timeout": timeout,
        "stall-timeout": stall_timeout,
        "on-failure": then,
    }
    if rate is not None:
        request["rate"] = rate
    if wait:
        result = asyncio.run(_resize(vm, size, request))
        _show(vm, result, as_json=as_json)
        _leave(result, as_json=as_json)
        return
    value = asyncio.run(_ask(vm, size, request, is_watched=rate is not None or then != "keep"))
    if as_json:
        print_json({"name": vm, "target-bytes": value, "actual-bytes": None})
    else:
        console.print(f"{vm}: asked for {size_cell(value)}", highlight=False)


def _show(vm: str, result: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({"name": vm, **result, "actual-bytes": result.get("final-bytes")})
    elif result.get("result") in (Outcome.REACHED.value, Outcome.CANCELLED.value):
        console.print(f"{vm}: {result.get('explanation')}", highlight=False, markup=False)


def _leave(result: Mapping[str, object], *, as_json: bool) -> None:
    """End with the exit status that goes with a result."""
    if not as_json:
        check_reached(result)
    elif result.get("result") == Outcome.TIMED_OUT.value:
        raise typer.Exit(3)
    elif result.get("result") != Outcome.REACHED.value:
        raise typer.Exit(1)


async def _value(client: qmp.BalloonClient, vm: str, size: SizeWanted) -> int:
    """Return the bytes that are meant, and say so if the machine has fewer."""
    status = await client.query("ballast-status")
    ram, target = status.get("ram-bytes"), status.get("target-bytes")
    value = size.resolve(
        ram if isinstance(ram, int) else None, target if isinstance(target, int) else None
    )
    if isinstance(ram, int) and value > ram:
        _note(f"{vm} has {size_cell(ram)} in all; more cannot be given, so all of it is asked for")
    if dig(status, "resizing", "inhibit", "enabled"):
        _note(f"{vm} gives nothing back to the host; `ballast status {vm}` says why")
    return value


def _note(text: str) -> None:
    messages.print(text, style="yellow", markup=False, highlight=False)


async def _ask(
    vm: str, size: SizeWanted, request: Mapping[str, object], *, is_watched: bool
) -> int:
    async with qmp.connect(qmp_socket(vm)) as client:
        value = await _value(client, vm, size)
        if is_watched:
            await client.execute("ballast-resize", {**request, "value": value})
        else:
            await client.execute("balloon", {"value": value})
        return value


async def _cancel(vm: str, *, rollback: bool) -> Mapping[str, object]:
    async with qmp.connect(qmp_socket(vm)) as client:
        return await client.query("ballast-resize-cancel", {"rollback": rollback})


async def _resize(vm: str, size: SizeWanted, request: Mapping[str, object]) -> Mapping[str, object]:
    async with qmp.connect(qmp_socket(vm)) as client:
        value = await _value(client, vm, size)
    with _progress() as bar:
        task = bar.add_task(vm, total=None, now="")

        def show(progress: Mapping[str, object]) -> None:
            start, now, wanted = (
                progress.get(key) for key in ("initial-bytes", "actual-bytes", "wanted-bytes")
            )
            said = f"{size_cell(now)} of {size_cell(wanted)}, {progress.get('guest')}"
            bar.update(task, now=said)
            if isinstance(start, int) and isinstance(now, int) and isinstance(wanted, int):
                total = abs(wanted - start) or 1
                bar.update(task, total=total, completed=total - min(abs(wanted - now), total))

        try:
            return await Follow(qmp_socket(vm), show).resize({**request, "value": value})
        except asyncio.CancelledError:
            _note(f"{vm}: the resize goes on; end it with `ballast set {vm} --cancel`")
            raise


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[now]}", markup=False),
        TimeElapsedColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    )

"""`top`: all VMs, over and over."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from ballast.cli.common import JsonFlag, console, dig, print_json, qmp_socket, size_cell
from ballast.daemon.paths import served_names
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import STATISTIC_UNSET

_ANSWER_SECONDS = 5.0
"""A VM that takes longer to answer is shown without its values, and asked again the next time."""

_BAR_CELLS = 12


@dataclass
class Look:
    """What one VM said.

    Attributes:
        name: Its name.
        status: What `ballast-status` said; empty if it did not answer.
        stats: What `ballast-stats` said.
        problem: Why it did not answer, or what is wrong with it.
    """

    name: str
    status: dict[str, object] = field(default_factory=dict)
    stats: dict[str, object] = field(default_factory=dict)
    problem: str = ""


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-n", help="Seconds between two looks.", min=0.1)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and return.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show all VMs, over and over, until Ctrl-C.

    GUEST is what the guest does about its target; AVAILABLE is what it could give up by its own
    count, with the age of that count, which nobody asks for here: have Ballast poll for it
    (`stats-polling-interval`). Where the output is no terminal, it is as with `--once`.
    """
    if as_json:
        print_json([_values(each) for each in asyncio.run(_look())])
    elif once or not console.is_terminal:
        console.print(_table(asyncio.run(_look())))
    else:
        asyncio.run(_go_on(interval))


async def _go_on(interval_seconds: float) -> None:
    stopped = asyncio.Event()
    with _signals(stopped), Live(console=console, screen=True, auto_refresh=False) as live:
        while not stopped.is_set():
            live.update(_table(await _look()), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await stopped.wait()


@contextlib.contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    """Have SIGINT and SIGTERM end the showing, with the terminal as it was."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _look() -> list[Look]:
    return await asyncio.gather(*(_look_at(name) for name in served_names()))


async def _look_at(name: str) -> Look:
    look = Look(name)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS), qmp.connect(qmp_socket(name)) as client:
            look.status = await client.query("ballast-status")
            look.stats = await client.query("ballast-stats")
            look.problem = str(look.status.get("problem") or "")
    except TimeoutError:
        look.problem = f"no answer in {_ANSWER_SECONDS:g} s"
    except OperatorError as error:
        look.problem = str(error)
    return look


def _values(look: Look) -> dict[str, object]:
    return {"name": look.name, **look.status, "stats": look.stats or None, "problem": look.problem}


def _table(looks: list[Look]) -> Table:
    caption = None if looks else "No VM is being served."
    table = Table(box=None, header_style="bold", pad_edge=False, caption=caption, expand=True)
    for title in ("VM", "GUEST", "", "TARGET", "ACTUAL", "RAM", "BOOKS", "HOST", "AVAILABLE"):
        is_text = title in ("VM", "GUEST", "")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    table.add_column("NOTES", ratio=1, no_wrap=True)
    for look in looks:
        table.add_row(*_row(look))
    return table


def _row(look: Look) -> tuple[str, ...]:
    status = look.status
    return (
        look.name,
        str(dig(status, "resizing", "guest") or status.get("state") or "-"),
        _bar(status.get("actual-bytes"), status.get("ram-bytes")),
        size_cell(status.get("target-bytes")),
        size_cell(status.get("actual-bytes")),
        size_cell(status.get("ram-bytes")),
        size_cell(dig(status, "ledger", "bytes")),
        size_cell(dig(status, "host", "allocated-bytes")),
        _available(look),
        _notes(look),
    )


def _bar(actual_bytes: object, ram_bytes: object) -> str:
    """Return how much of its RAM a guest has, as a bar."""
    if not isinstance(actual_bytes, int) or not isinstance(ram_bytes, int) or not ram_bytes:
        return ""
    filled = round(_BAR_CELLS * min(actual_bytes / ram_bytes, 1.0))
    return "█" * filled + "░" * (_BAR_CELLS - filled)


def _available(look: Look) -> str:
    value = dig(look.stats, "stats", "stat-available-memory")
    age = look.stats.get("age-seconds")
    if value == STATISTIC_UNSET or not isinstance(age, int | float):
        return "-"
    return f"{size_cell(value)} ({age:.0f} s)"


def _notes(look: Look) -> str:
    resizing = look.status.get("resizing")
    notes = [look.problem] if look.problem else []
    for name, word in (("hold", "held"), ("inhibit", "inhibited")):
        if dig(resizing, name, "enabled"):
            reason = dig(resizing, name, "reason")
            notes.append(f"{word}: {reason}" if reason else word)
    if waiting := dig(look.status, "ledger", "waiting-bytes"):
        notes.append(f"{size_cell(waiting)} waits for whole host pages")
    if dig(resizing, "current", "id") is not None:
        elapsed, limit = (dig(resizing, "current", key) for key in ("seconds", "timeout-seconds"))
        notes.append(f"resize {dig(resizing, 'current', 'id')}: {elapsed} of {limit} s")
    return "; ".join(notes)

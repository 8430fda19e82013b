"""`sweep`, `compact` and `nodes`: what the agent in the guest does with free memory."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from ballast.cli.common import (
    JsonFlag,
    VmName,
    console,
    print_json,
    qmp_socket,
    size_cell,
)
from ballast.qmp import client as qmp
from ballast.sizes import parse_size
from ballast_protocol.errors import OperatorError

Node = Annotated[
    int | None, typer.Option("--node", min=0, help="One NUMA node of the guest; else all of them.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", "-t", help="Seconds to wait at most.", min=0.1, max=60.0)
]

_ANSWER_SECONDS = 5.0
"""How much longer the daemon may take to say so than what it was asked to do."""


def sweep(
    vm: VmName, node: Node = None, timeout: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Give the guest's free memory back to the host; the guest keeps its size.

    The agent in the guest takes what is free in blocks of 2 MiB, the host frees them, and the guest
    has them again at once. It is what the guest's kernel does by itself where it knows free-page
    reporting. Without a `--node` all of the guest's memory is swept.
    """
    done = asyncio.run(_ask(vm, "ballast-sweep", node, timeout))
    if as_json:
        print_json({"name": vm, **done})
        return
    console.print(
        f"{vm}: the host got {size_cell(done['freed-bytes'])} back, of "
        f"{size_cell(done['reported-bytes'])} that were free ({done['reason']})",
        highlight=False,
        markup=False,
    )


def compact(
    vm: VmName, node: Node = None, timeout: Timeout = 60.0, as_json: JsonFlag = False
) -> None:
    """Have the guest's kernel move its pages together, so that more blocks of 2 MiB are free."""
    done = asyncio.run(_ask(vm, "ballast-compact", node, timeout))
    if as_json:
        print_json({"name": vm, **done})
        return
    console.print(
        f"{vm}: {done['blocks-after']} free blocks, {done['blocks-before']} before",
        highlight=False,
        markup=False,
    )


async def _ask(
    vm: str, command: str, node: int | None, timeout_seconds: float
) -> dict[str, object]:
    arguments: dict[str, object] = {"timeout": timeout_seconds}
    if node is not None:
        arguments["node"] = node
    async with qmp.connect(qmp_socket(vm)) as client:
        return await client.query(
            command, arguments, timeout_seconds=timeout_seconds + _ANSWER_SECONDS
        )


def _share(text: str) -> tuple[int, int]:
    """Parse `NODE=SIZE`.

    Raises:
        typer.BadParameter: It is not of that form.
    """
    node, _, size = text.partition("=")
    try:
        share = parse_size(size)
    except OperatorError as error:
        raise typer.BadParameter(f"{text!r} is not of the form NODE=SIZE: {error}") from error
    if not node.isdecimal() or share < 0:
        raise typer.BadParameter(f"{text!r} is not of the form NODE=SIZE")
    return int(node), share


def nodes(
    vm: VmName,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=SIZE",
            help="What a node contributes to the target before others do; 0 for nothing special.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the NUMA nodes of a guest, and set what each is to contribute.

    HELD is what the agent holds against the target. `--share 1=512M` has node 1 give up
    512 MiB before others give up any; it takes `ballast set` to change how much is given up in
    all.
    """
    rows = asyncio.run(_nodes(vm, [_share(each) for each in share or []]))
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("NODE", "TOTAL", "FREE", "FREE BLOCKS", "HELD", "SWEEPING", "SHARE"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["node"]),
            size_cell(row["total-bytes"]),
            size_cell(row["free-bytes"]),
            "-" if row["free-blocks"] is None else str(row["free-blocks"]),
            size_cell(row["held-bytes"]),
            size_cell(row["sweep-bytes"]),
            size_cell(row["share-bytes"]) if row["share-bytes"] else "-",
        )
    if rows:
        console.print(table)
    else:
        console.print(f"{vm}: no agent has told of its nodes", highlight=False, markup=False)


async def _nodes(vm: str, shares: list[tuple[int, int]]) -> list[dict[str, object]]:
    async with qmp.connect(qmp_socket(vm)) as client:
        for node, size_bytes in shares:
            await client.execute("ballast-nodes", {"node": node, "share": size_bytes})
        answer = await client.execute("ballast-nodes")
    return list(answer) if isinstance(answer, list) else []

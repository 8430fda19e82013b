"""The commands about blocks of 2 MiB that the agent in the guest takes."""

from __future__ import annotations

from typing import Annotated

from ballast.qmp.ballast_commands import MAX_TIMEOUT_SECONDS, check_timeout
from ballast.qmp.control import BlocksControl
from ballast.qmp.registry import EVENTS, Context, EventDeclaration, command
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import RefusedError
from ballast_protocol.qmp.types import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    ListOf,
    Member,
    Record,
    optional,
)

Node = Annotated[int | None, "The NUMA node of the guest; all of them if left out."]
LongTimeout = Annotated[float, "Seconds that the guest may take: more than 0, at most 60, else 60."]

SWEEP_DONE = Record(
    (
        Member("seconds", NUMBER, "How long it took."),
        Member("reason", STRING, "Why it went no further, in words."),
        Member("tried-blocks", INTEGER, "Blocks that the guest's kernel was asked for."),
        Member("isolated-blocks", INTEGER, "Blocks that it gave."),
        Member("reported-bytes", INTEGER, "What was reported and given back."),
        Member("freed-bytes", INTEGER, "How much less the host holds because of it."),
    ),
    "BallastSweepDone",
)

COMPACT_DONE = Record(
    (
        Member("seconds", NUMBER, "How long it took."),
        Member("blocks-before", INTEGER, "Free blocks before."),
        Member("blocks-after", INTEGER, "Free blocks after."),
    ),
    "BallastCompactDone",
)

NODES = ListOf(
    Record(
        (
            Member("node", INTEGER, "The NUMA node in the guest."),
            Member("total-bytes", optional(INTEGER), "Memory that the kernel manages there."),
            Member("free-bytes", optional(INTEGER), "Free memory there."),
            Member("free-blocks", optional(INTEGER), "Free blocks to be had without compaction."),
            Member("held-bytes", INTEGER, "What of it is held against the target, by our books."),
            Member("sweep-bytes", INTEGER, "What of it a sweep has taken for the moment."),
            Member("agent-held-bytes", optional(INTEGER), "What the agent says that it holds."),
            Member("under-way-bytes", optional(INTEGER), "Blocks taken and not acknowledged."),
            Member("share-bytes", INTEGER, "What the node is to contribute before others do."),
        ),
        "BallastNode",
    )
)

EVENTS["BALLAST_GUEST_PRESSURE"] = EventDeclaration(
    Record(
        (
            Member("pressure", BOOLEAN, "Whether the guest is short of memory now."),
            Member("releases", INTEGER, "How often its agent gave blocks back since the last one."),
            Member("available-bytes", INTEGER, "Memory that the guest still has available."),
            Member("held-bytes", INTEGER, "What the agent still holds."),
            Member("yielded-bytes", INTEGER, "What of the target nobody takes at present."),
        )
    ),
    "The guest runs short of memory, or does no longer, by what its agent sees. The agent gives "
    "blocks back by itself. At most one a second, the last always among them.",
    1.0,
)


def _blocks(context: Context) -> BlocksControl:
    if context.vm.blocks is None:
        raise OperatorError(f"{context.vm.name} has no balloon that an agent could help")
    return context.vm.blocks


@command("ballast-sweep", returns=SWEEP_DONE)
async def ballast_sweep(
    context: Context,
    *,
    node: Node = None,
    timeout: LongTimeout = MAX_TIMEOUT_SECONDS,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Have the agent report all memory that is free in the guest, so that the host gets it back.

    The guest keeps its size: it has the memory again as soon as the sweep is over. `TimedOut` if
    that is not so in time; the sweep goes on then.
    """
    check_timeout(timeout)
    return await _blocks(context).sweep(node, timeout)


@command("ballast-compact", returns=COMPACT_DONE)
async def ballast_compact(
    context: Context,
    *,
    node: Node = None,
    timeout: LongTimeout = MAX_TIMEOUT_SECONDS,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Have the guest's kernel move its pages together, so that more whole blocks are free."""
    check_timeout(timeout)
    return await _blocks(context).compact(node, timeout)


@command("ballast-nodes", returns=NODES)
async def ballast_nodes(
    context: Context,
    *,
    node: Annotated[int | None, "Set this NUMA node's share first."] = None,
    share: Annotated[
        int | None, "What of the target it contributes before others do, in bytes; 0 for nothing."
    ] = None,
) -> object:
    """Return the NUMA nodes of the guest, and set what one of them is to contribute.

    Shares say where the memory comes from that the target wants; they do not change the target.
    """
    blocks = _blocks(context)
    if (node is None) != (share is None):
        raise RefusedError("Parameters 'node' and 'share' go together")
    if node is not None and share is not None:
        blocks.set_share(node, share)
    return blocks.nodes()

"""What is known of the agent's blocks, as JSON values for `ballast-status` and `ballast-nodes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from ballast.balloon.block_set import NodeHoldings
from ballast.balloon.blocks import BlockBook
from ballast.guest_link.blocks import BlockSession
from ballast.guest_status import hyphenated
from ballast_protocol.guest_blocks import BlocksStatus


def blocks_status(book: BlockBook, session: BlockSession | None) -> dict[str, object]:
    """Return what the book says, what the agent says, and how well the one serves the other."""
    status = None if session is None else session.status
    sweep = None if session is None else session.last_sweep
    counters = {} if session is None else asdict(session.counters)
    return {
        "held-bytes": book.hold_bytes,
        "sweep-bytes": book.sweep_bytes,
        "counters": hyphenated({**book.metrics.as_dict(), **counters}),
        "hit-rate": _hit_rate(book, status),
        "agent": None if status is None else _agent(status),
        "last-sweep": None if sweep is None else hyphenated(asdict(sweep)),
    }


def _hit_rate(book: BlockBook, status: BlocksStatus | None) -> dict[str, float | None]:
    """Return how much of what was tried came to something, from 0 to 1; None if nothing was tried.

    `isolated`: blocks that the guest's kernel gave the agent, of those it was asked for. `freed`:
    bytes that the host got back, of those reported; what the guest never used frees nothing.
    """
    tried = 0 if status is None else status.counters.tried_blocks
    isolated = 0 if status is None else status.counters.isolated_blocks
    metrics = book.metrics
    return {
        "isolated": round(isolated / tried, 4) if tried else None,
        "freed": (
            round(metrics.freed_bytes / metrics.reported_bytes, 4)
            if metrics.reported_bytes
            else None
        ),
    }


def _agent(status: BlocksStatus) -> dict[str, object]:
    """Return what the agent said of itself, but for the nodes."""
    fields = hyphenated(asdict(status))
    del fields["nodes"]
    return fields


def node_rows(
    book: BlockBook, status: BlocksStatus | None, shares: Mapping[int, int]
) -> list[dict[str, object]]:
    """Return a row for each NUMA node that the agent, the book or the operator speaks of."""
    held = book.by_node()
    said = {} if status is None else {each.node: each for each in status.nodes}
    rows: list[dict[str, object]] = []
    for node in sorted(held.keys() | said.keys() | shares.keys()):
        ours, theirs = held.get(node, NodeHoldings()), said.get(node)
        rows.append(
            {
                "node": node,
                "total-bytes": None if theirs is None else theirs.total_bytes,
                "free-bytes": None if theirs is None else theirs.free_bytes,
                "free-blocks": None if theirs is None else theirs.free_blocks,
                "held-bytes": ours.hold_bytes,
                "sweep-bytes": ours.sweep_bytes,
                "agent-held-bytes": None if theirs is None else theirs.held_bytes,
                "under-way-bytes": None if theirs is None else theirs.under_way_bytes,
                "share-bytes": shares.get(node, 0),
            }
        )
    return rows

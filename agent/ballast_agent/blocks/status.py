"""Where the agent stands, as it tells the host."""

from __future__ import annotations

from dataclasses import dataclass

from ballast_agent.blocks.book import Book, Standing
from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.supply import supplies
from ballast_protocol.guest_blocks import BLOCK_BYTES, NodeBlocks


@dataclass
class Counts:
    """What has been counted since the agent started; see `BlockCounters`."""

    tried_blocks: int = 0
    isolated_blocks: int = 0
    reported_bytes: int = 0
    acknowledged_bytes: int = 0
    freed_bytes: int = 0
    released_bytes: int = 0
    pressure_releases: int = 0
    sweeps: int = 0
    lost_blocks: int = 0
    reclaimed_bytes: int = 0


def node_blocks(kernel: Kernel, book: Book) -> tuple[NodeBlocks, ...]:
    """Return how each node stands.

    Raises:
        OperatorError: If the kernel does not show its memory.
    """
    nodes = supplies(kernel)
    return tuple(
        NodeBlocks(
            node=node,
            total_bytes=each.total_bytes,
            free_bytes=each.free_bytes,
            free_blocks=each.free_blocks,
            held_bytes=book.count(Standing.HELD, node=node) * BLOCK_BYTES,
            under_way_bytes=BLOCK_BYTES
            * book.count(Standing.NEW, Standing.UNDER_WAY, Standing.DOUBTFUL, node=node),
        )
        for node, each in sorted(nodes.items())
    )

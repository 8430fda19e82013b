"""What each node of the guest could give: free memory, and whole free blocks."""

from __future__ import annotations

from dataclasses import dataclass

from ballast_agent.blocks.freemap import free_blocks
from ballast_agent.blocks.kernel import Kernel
from ballast_protocol.guest_blocks import BLOCK_BYTES, PAGE_BYTES

_NEVER_GIVEN = "DMA"
"""The kernel keeps its lowest 16 MiB for devices that reach no further."""


@dataclass(frozen=True)
class NodeSupply:
    """One node.

    Attributes:
        total_bytes: What its page allocator manages, free or not; isolated blocks included.
        free_bytes: Free memory.
        free_blocks: Free blocks that can be isolated as they are.
    """

    total_bytes: int = 0
    free_bytes: int = 0
    free_blocks: int = 0

    @property
    def free_block_bytes(self) -> int:
        """Bytes in its free blocks."""
        return self.free_blocks * BLOCK_BYTES


def supplies(kernel: Kernel) -> dict[int, NodeSupply]:
    """Return what each node that has memory could give now.

    Raises:
        OperatorError: If the kernel does not tell.
    """
    zones = kernel.zones()
    nodes: dict[int, NodeSupply] = {}
    for key, orders in kernel.buddyinfo().items():
        node, zone = key
        known = nodes.get(node, NodeSupply())
        info = zones.get(key)
        nodes[node] = NodeSupply(
            total_bytes=known.total_bytes + (0 if info is None else info.managed * PAGE_BYTES),
            free_bytes=known.free_bytes + sum(n << o for o, n in enumerate(orders)) * PAGE_BYTES,
            free_blocks=known.free_blocks + (0 if zone == _NEVER_GIVEN else free_blocks(orders)),
        )
    return nodes


def given_by(supply: dict[int, NodeSupply]) -> dict[int, int]:
    """Return the free blocks of each node."""
    return {node: each.free_blocks for node, each in supply.items()}

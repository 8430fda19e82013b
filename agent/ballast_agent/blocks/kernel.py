"""What the agent needs of its kernel: an interface, so that tests can play a whole guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ballast_agent.procfs import ZoneInfo, ZoneKey

KPF_BUDDY = 1 << 10
KPF_COMPOUND_HEAD = 1 << 15
KPF_HUGE = 1 << 17
KPF_NOPAGE = 1 << 20

POOL_PAGE = KPF_COMPOUND_HEAD | KPF_HUGE
"""Flags of the first page of a free huge page, and all the flags that it has."""

_STABLE = (1 << 32) - 1
"""Bits of `/proc/kpageflags` that keep their meaning; those above are for kernel hackers."""


def is_pool_page(flags: int) -> bool:
    """Tell whether these are the flags of the first page of a huge page that nobody uses."""
    return flags & _STABLE == POOL_PAGE


@dataclass(frozen=True)
class PoolCounts:
    """The pool of 2 MiB pages as the kernel counts it, over all nodes.

    Attributes:
        total: Pages in the pool.
        free: Those that nobody has allocated.
        reserved: Those that are promised to somebody, of the free ones.
        surplus: Those that are there beyond what was asked for.
    """

    total: int
    free: int
    reserved: int
    surplus: int


@dataclass(frozen=True)
class NodePool:
    """The same for one node, where the kernel does not count reservations."""

    total: int
    free: int


@dataclass(frozen=True)
class MemorySpan:
    """Memory that is there, without holes, and on one node.

    Attributes:
        first_pfn: Its first page.
        end_pfn: The page after its last.
        node: Its node; None where the kernel does not say, which leaves it to the zones.
    """

    first_pfn: int
    end_pfn: int
    node: int | None


class Kernel(Protocol):
    """The kernel of the guest. Every method may raise `OperatorError`."""

    def meminfo(self) -> Mapping[str, int]:
        """Return the amounts of `/proc/meminfo`, in bytes."""

    def zones(self) -> Mapping[ZoneKey, ZoneInfo]:
        """Return the zones that have memory."""

    def buddyinfo(self) -> Mapping[ZoneKey, tuple[int, ...]]:
        """Return the number of free blocks by order, for each zone."""

    def memory(self) -> Sequence[MemorySpan]:
        """Return where memory is, in ascending order."""

    def obstacle(self) -> str | None:
        """Return why blocks must not be taken in this guest, apart from how the pool is used."""

    def pool(self) -> PoolCounts:
        """Return the counts of the pool."""

    def node_pools(self) -> Mapping[int, NodePool]:
        """Return the counts of the pool on each node."""

    def resize_pool(self, node: int, pages: int) -> None:
        """Make the pool of a node so large, as far as that goes within a moment."""

    def page_flags(self, pfns: Sequence[int]) -> Sequence[int]:
        """Return the flags of each of these pages; `KPF_NOPAGE` for one that does not exist."""

    def is_claimed(self) -> bool:
        """Tell whether the pool is marked as the agent's."""

    def claim(self) -> None:
        """Mark the pool as the agent's, for as long as the guest runs."""

    def unclaim(self) -> None:
        """Remove the mark, and the reservation with it."""

    def reserve(self, pages: int) -> None:
        """Reserve so many pages of the pool: more than before, or fewer.

        Raises:
            OperatorError: If there are not so many that are free and nobody else's.
        """

    def compact(self, node: int | None) -> None:
        """Move pages together until free ones lie next to each other; on all nodes if None."""

    def stalled_seconds(self) -> float:
        """Return how long tasks have waited for memory since the guest booted."""

    def reclaim(self, size_bytes: int) -> None:
        """Make the kernel give up so much page cache, or as much of it as it can."""

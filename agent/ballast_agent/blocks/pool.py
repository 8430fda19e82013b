"""The pool of huge pages: growing it isolates blocks, shrinking it gives them back.

Whatever is interrupted here, even by `kill -9`, leaves a pool that `recover` understands: the claim
is there before the first page is, so the pages are the agent's, and reserved or not they are in
nobody's use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import islice

from ballast_agent.blocks.freemap import FreeMap
from ballast_agent.blocks.kernel import Kernel, PoolCounts, is_pool_page
from ballast_protocol.errors import OperatorError

_LOOK_AT_ONCE = 64

log = logging.getLogger(__name__)


class Pool:
    """The blocks that are isolated, by what the kernel says of them.

    No report may be under way while anything but `is_whole` and `not_isolated` is called: while the
    pool grows, its pages are anybody's; when it shrinks, the kernel chooses which pages go.

    Attributes:
        blocks: First page and node of each. Those that a call has let go are missing after it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.blocks: dict[int, int] = {}
        self._kernel = kernel
        self._reserved = 0
        self._is_foul = False
        self._map: FreeMap | None = None

    @property
    def map(self) -> FreeMap:
        """The map of free memory, made anew when memory was plugged or unplugged."""
        zones = self._kernel.zones()
        if self._map is None or not self._map.is_of(zones):
            self._map = FreeMap(zones, self._kernel.memory())
        return self._map

    def recover(self) -> None:
        """Find what a predecessor left, giving nothing back: it may have a report under way.

        Raises:
            OperatorError: If somebody else uses the pool, or pages of it cannot be found.
        """
        if not self._kernel.is_claimed():
            self._check_unused()
            return
        counts = self._kernel.pool()
        for node, pool in self._kernel.node_pools().items():
            self._find(node, pool.total)
        # Until it is known to be in order, it is not.
        self._is_foul = True
        self._reserve(counts.free)
        if not self.is_whole():
            raise _foreign(counts.total - counts.free)
        self._is_foul = False
        self._tidy()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that could be given back."""
        return not self.blocks and not self._is_foul

    def take(self, node: int, count: int) -> list[int]:
        """Isolate up to `count` blocks of a node and return them, in ascending order.

        Raises:
            OperatorError: If the kernel refuses, or the pages are taken by somebody else.
        """
        if not self.blocks:
            self._check_unused()
            self._kernel.claim()
        before = self._total(node)
        self._kernel.resize_pool(node, before + count)
        gained = self._reserve_gain(node, before)
        found = self._find(node, gained)
        if len(found) < gained:
            # Memory may have been plugged, or come online, since the map was made.
            self._map = None
            found += self._find(node, gained - len(found))
        if len(found) < gained:
            self._drop_unfound()
        elif gained < count or len(found) > gained:
            # What is reserved is a number of pages. If some went offline before the new ones were
            # reserved too, they need not have been the new ones.
            self.look_again()
        self._tidy()
        return sorted(pfn for pfn in found if pfn in self.blocks)

    def give_back(self, counts: Mapping[int, int]) -> None:
        """Give back so many blocks of each node; the kernel chooses which.

        All go back if `recover` has not found the pool in order.

        Raises:
            OperatorError: If the kernel refuses.
        """
        per_node = self.per_node()
        if self._is_foul:
            self._abandon()
            return
        counts = {node: min(count, per_node.get(node, 0)) for node, count in counts.items()}
        self._reserve(len(self.blocks) - sum(counts.values()))
        for node, count in counts.items():
            if count:
                self._kernel.resize_pool(node, max(0, self._total(node) - count))
            if count == per_node.get(node, 0):
                # All of ours: whatever is in the pool now is somebody else's.
                self._forget(pfn for pfn, home in self.blocks.items() if home == node)
        self.forget_vanished(node for node, count in counts.items() if count)
        if not self.is_whole():
            self.look_again()
        self._tidy()

    def per_node(self) -> dict[int, int]:
        """Return how many blocks there are on each node that has any."""
        counts: dict[int, int] = {}
        for node in self.blocks.values():
            counts[node] = counts.get(node, 0) + 1
        return counts

    def forget_vanished(self, nodes: Iterable[int]) -> None:
        """Forget the blocks of these nodes that are in the pool no more."""
        for node in list(nodes):
            mine = [pfn for pfn, home in self.blocks.items() if home == node]
            self._forget(self.not_isolated(mine))

    def look_again(self) -> bool:
        """Find out where our pages are now; tell whether the pool is ours alone.

        The kernel can have replaced pages of the pool by others. As long as there are as many as we
        have reserved, all of them free, they are ours.
        """
        self.forget_vanished(self.per_node())
        reserved = self._reserved
        if self._kernel.pool() == PoolCounts(reserved, reserved, reserved, 0):
            per_node = self.per_node()
            for node, pool in self._kernel.node_pools().items():
                self._find(node, pool.total - per_node.get(node, 0))
        return self.is_whole()

    def not_isolated(self, pfns: Iterable[int]) -> list[int]:
        """Return those of these blocks that are no free pages of the pool at this moment."""
        asked = list(pfns)
        flags = self._kernel.page_flags(asked)
        return [pfn for pfn, flag in zip(asked, flags) if not is_pool_page(flag)]

    def is_whole(self) -> bool:
        """Tell whether the pool has our blocks and no others, all free and all reserved by us."""
        mine = len(self.blocks)
        return self._kernel.pool() == PoolCounts(total=mine, free=mine, reserved=mine, surplus=0)

    def _reserve(self, pages: int) -> None:
        self._kernel.reserve(pages)
        self._reserved = pages

    def _reserve_gain(self, node: int, before: int) -> int:
        """Reserve what the pool of a node has gained, and return how much that is.

        Memory may go offline meanwhile, and take pages along: as many as are not reserved yet.

        Raises:
            OperatorError: If pages are there and yet not to be had; then the pool is as before.
        """
        gained = max(0, self._total(node) - before)
        while True:
            wanted = len(self.blocks) + gained
            try:
                self._reserve(wanted)
                return gained
            except OperatorError:
                # Which pages are the reserved ones is not decided: some that were held may be gone.
                self.forget_vanished(self.per_node())
                mine = self.per_node().get(node, 0)
                gained = max(0, self._total(node) - mine)
                if len(self.blocks) + gained >= wanted:
                    self._kernel.resize_pool(node, mine)
                    raise

    def _unclaim(self) -> None:
        self._kernel.unclaim()
        self._reserved = 0

    def _total(self, node: int) -> int:
        pool = self._kernel.node_pools().get(node)
        return 0 if pool is None else pool.total

    def _check_unused(self) -> None:
        total = self._kernel.pool().total
        if total:
            raise _foreign(total)

    def _abandon(self) -> None:
        """Make the pool as it was when it was claimed: empty, but for pages that are in use.

        Those leave the pool when their users do.
        """
        self.blocks.clear()
        self._reserve(0)
        for node, pool in self._kernel.node_pools().items():
            if pool.total:
                self._kernel.resize_pool(node, 0)
        self._unclaim()
        self._is_foul = False

    def _forget(self, pfns: Iterable[int]) -> None:
        for pfn in list(pfns):
            del self.blocks[pfn]

    def _tidy(self) -> None:
        if not self.blocks:
            self._unclaim()

    def _find(self, node: int, count: int) -> list[int]:
        """Look for `count` new pages of the pool on a node, where they are likeliest first."""
        found: list[int] = []
        blocks = self.map
        candidates = blocks.candidates(node, self.blocks)
        while len(found) < count:
            batch = list(islice(candidates, _LOOK_AT_ONCE))
            if not batch:
                break
            for pfn, flags in zip(batch, self._kernel.page_flags(batch)):
                blocks.note(pfn, flags)
                if is_pool_page(flags):
                    found.append(pfn)
                    self.blocks[pfn] = node
        return found

    def _drop_unfound(self) -> None:
        """Give back pages that could not be found: what is not known cannot be reported.

        Raises:
            OperatorError: If others went instead; then all have gone.
        """
        per_node = self.per_node()
        missing = {
            node: pool.total - per_node.get(node, 0)
            for node, pool in self._kernel.node_pools().items()
            if pool.total > per_node.get(node, 0)
        }
        if not missing:
            return
        log.warning("%d huge pages were not found, and go back", sum(missing.values()))
        self._reserve(len(self.blocks))
        for node, count in missing.items():
            self._kernel.resize_pool(node, self._total(node) - count)
        if not self.look_again():
            self._abandon()
            raise OperatorError("huge pages are not where this guest says that it has memory")


def _foreign(pages: int) -> OperatorError:
    return OperatorError(
        f"this guest uses huge pages itself: {pages} of 2 MiB",
        hint="leave it to the kernel's balloon, or set vm.nr_hugepages to 0",
    )

"""A guest's memory in blocks of 2 MiB, with Linux's pool of huge pages, for the agent to work on.

It behaves as Linux's mm/hugetlb.c does where that matters: growing takes free blocks, wherever they
are, and reclaims page cache when there are none; shrinking spares what is reserved and gives back
the pages that came last; reservations are counted over all nodes; whoever maps a huge page gets any
free page that nobody has reserved; memory offlining dissolves free pages until it meets the
reservation; contiguous allocation replaces even reserved pages.

Every call can be the agent's last: see `FakeKernel.fuse`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ballast_agent.blocks.kernel import (
    KPF_BUDDY,
    KPF_NOPAGE,
    POOL_PAGE,
    MemorySpan,
    NodePool,
    PoolCounts,
)
from ballast_agent.procfs import ZoneInfo, ZoneKey
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import BLOCK_BYTES, PAGES_PER_BLOCK

FREE, USED, CACHE, POOL, APP, OFFLINE = "free", "used", "cache", "pool", "app", "offline"

_USED_FLAGS = 1 << 5 | 1 << 12
_APP_FLAGS = POOL_PAGE | 1 << 11


class KilledError(BaseException):
    """The agent was killed by a signal that it cannot catch."""


@dataclass
class Block:
    """Two megabytes of the guest.

    Attributes:
        pfn: Its first page.
        node: Its NUMA node.
        state: Who has it.
        content: What its user has written; None where the host has discarded it.
    """

    pfn: int
    node: int
    state: str = FREE
    content: str | None = "at boot"


@dataclass
class FakeKernel:
    """The kernel; what it keeps outlives the agent.

    Attributes:
        blocks: The guest's memory, by first page.
        hindrance: What `obstacle` says.
        fuse: After how many further calls the agent is killed, within the call; None for never.
        compactions: How often compaction was asked for.
        hidden: Free blocks that are only found after compaction.
        stalled: How long tasks have waited for memory, in seconds.
        dissolving: How many pages of the pool that nobody has reserved go offline just before the
            next reservation.
        unseen: How many blocks the kernel does not say that it has; `seen_each_time` fewer the next
            time.
    """

    blocks: dict[int, Block]
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    hindrance: str | None = None
    fuse: int | None = None
    compactions: int = 0
    hidden: int = 0
    stalled: float = 0.0
    dissolving: int = 0
    unseen: int = 0
    seen_each_time: int = 0
    _free_list: dict[int, list[int]] = field(default_factory=dict)
    _claimed: bool = False
    _reserved: int = 0
    _surplus: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, *nodes: int, seed: int = 1) -> FakeKernel:
        """Return a kernel whose nodes have so many blocks each; the first begins at 16 MiB."""
        pfn, blocks = 8 * PAGES_PER_BLOCK, {}
        for node, count in enumerate(nodes):
            for _ in range(count):
                blocks[pfn] = Block(pfn, node)
                pfn += PAGES_PER_BLOCK
        return cls(blocks, random.Random(seed))

    # What the guest does

    def in_state(self, *states: str, node: int | None = None) -> list[Block]:
        """Return the blocks in some states, of one node or of all."""
        return [b for b in self.blocks.values() if b.state in states and node in (None, b.node)]

    def use(self, count: int, content: str = "data", *, state: str = USED) -> int:
        """Let the guest use up to `count` free blocks; return how many there were."""
        free = self.in_state(FREE)
        chosen = self.rng.sample(free, min(count, len(free)))
        for block in chosen:
            block.state, block.content = state, f"{content} {block.pfn}"
        return len(chosen)

    def free(self, count: int, state: str = USED) -> None:
        """Let the guest free up to `count` of the blocks that it uses."""
        used = self.in_state(state)
        for block in self.rng.sample(used, min(count, len(used))):
            block.state = FREE

    def map_huge(self, count: int) -> int:
        """Let a program map huge pages and touch them; return how many it got."""
        got = min(count, len(self.in_state(POOL)) - self._reserved)
        for _ in range(got):
            node = next(n for n, pages in self._free_list.items() if pages)
            block = self.blocks[self._free_list[node].pop()]
            block.state, block.content = APP, f"huge {block.pfn}"
        return got

    def unmap_huge(self) -> None:
        """Let the program end: its pages are free pages of the pool again."""
        for block in self.in_state(APP):
            if self._surplus.get(block.node):
                self._surplus[block.node] -= 1
                block.state = FREE
            else:
                self._join_pool(block)

    def offline(self, pfns: Sequence[int]) -> bool:
        """Take memory offline; tell whether it worked. If not, what was dissolved is free."""
        dissolved: list[Block] = []
        for pfn in pfns:
            block = self.blocks[pfn]
            if block.state == POOL:
                if len(self.in_state(POOL)) <= self._reserved:
                    for done in dissolved:
                        done.state = FREE
                    return False
                self._leave_pool(block, OFFLINE)
            elif block.state != FREE:
                return False
            block.state = OFFLINE
            dissolved.append(block)
        return True

    def replace(self, pfn: int) -> None:
        """Replace a page of the pool by another one, as contiguous allocation does."""
        block = self.blocks[pfn]
        free = self.in_state(FREE, node=block.node)
        if block.state == POOL and free:
            self._leave_pool(block, USED)
            block.content = f"contiguous {pfn}"
            self._join_pool(self.rng.choice(free))

    def discard(self, pfn: int) -> None:
        """Let the host drop what is behind a block.

        Raises:
            AssertionError: If anybody in the guest uses it.
        """
        block = self.blocks[pfn]
        assert block.state not in (USED, APP, CACHE), f"page {pfn} was in use: {block}"
        block.content = None

    def verify(self) -> None:
        """Check that everybody in the guest finds what was written."""
        for block in self.in_state(USED, APP, CACHE):
            assert block.content is not None, f"page {block.pfn} has lost its contents"

    def _join_pool(self, block: Block) -> None:
        block.state = POOL
        self._free_list.setdefault(block.node, []).append(block.pfn)

    def _leave_pool(self, block: Block, state: str) -> None:
        self._free_list[block.node].remove(block.pfn)
        block.state = state

    # What the agent asks for

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise KilledError

    def meminfo(self) -> dict[str, int]:
        self._burn()
        available = len(self.in_state(FREE, CACHE)) * BLOCK_BYTES
        return {
            "MemTotal": len(self.blocks) * BLOCK_BYTES,
            "MemAvailable": available,
            "Inactive(file)": len(self.in_state(CACHE)) * BLOCK_BYTES,
        }

    def zones(self) -> dict[ZoneKey, ZoneInfo]:
        self._burn()
        zones = {}
        for node in sorted({block.node for block in self.blocks.values()}):
            mine = [b.pfn for b in self.blocks.values() if b.node == node]
            spanned = max(mine) + PAGES_PER_BLOCK - min(mine)
            present = len(mine) * PAGES_PER_BLOCK
            zones[node, "Normal"] = ZoneInfo(1, 2, 3, spanned, present, present, min(mine))
        return zones

    def buddyinfo(self) -> dict[ZoneKey, tuple[int, ...]]:
        self._burn()
        free = {key: len(self.in_state(FREE, node=key[0])) for key in self.zones()}
        whole = {key: max(0, count - self.hidden) for key, count in free.items()}
        return {key: (0,) * 9 + (count, 0) for key, count in whole.items()}

    def memory(self) -> list[MemorySpan]:
        self._burn()
        unseen, self.unseen = self.unseen, max(0, self.unseen - self.seen_each_time)
        return [
            MemorySpan(block.pfn, block.pfn + PAGES_PER_BLOCK, block.node)
            for block in sorted(self.blocks.values(), key=lambda block: block.pfn)
        ][: len(self.blocks) - unseen]

    def obstacle(self) -> str | None:
        self._burn()
        return self.hindrance

    def pool(self) -> PoolCounts:
        self._burn()
        free = len(self.in_state(POOL))
        return PoolCounts(free + len(self.in_state(APP)), free, self._reserved, self._all_surplus())

    def _all_surplus(self) -> int:
        return sum(self._surplus.values())

    def _persistent(self, node: int) -> int:
        return len(self.in_state(POOL, APP, node=node)) - self._surplus.get(node, 0)

    def node_pools(self) -> dict[int, NodePool]:
        self._burn()
        return {
            node: NodePool(
                len(self.in_state(POOL, APP, node=node)), len(self.in_state(POOL, node=node))
            )
            for node in sorted({block.node for block in self.blocks.values()})
        }

    def resize_pool(self, node: int, pages: int) -> None:
        self._burn()
        while self._surplus.get(node) and self._persistent(node) < pages:
            self._surplus[node] -= 1
        while self._persistent(node) < pages:
            free = self.in_state(FREE, node=node)
            free = free[self.hidden :] or self.in_state(CACHE, node=node)
            if not free:
                break
            self._join_pool(self.rng.choice(free))
            self._burn()
        while (
            self._persistent(node) > pages
            and self._free_list.get(node)
            and len(self.in_state(POOL)) > self._reserved
        ):
            self._leave_pool(self.blocks[self._free_list[node][-1]], FREE)
        self._surplus[node] = self._surplus.get(node, 0) + max(0, self._persistent(node) - pages)
        self._burn()

    def page_flags(self, pfns: Sequence[int]) -> list[int]:
        self._burn()
        flags = {FREE: KPF_BUDDY, POOL: POOL_PAGE, APP: _APP_FLAGS, OFFLINE: KPF_NOPAGE}
        return [
            flags.get(self.blocks[pfn].state, _USED_FLAGS) if pfn in self.blocks else KPF_NOPAGE
            for pfn in pfns
        ]

    def is_claimed(self) -> bool:
        self._burn()
        return self._claimed

    def claim(self) -> None:
        self._burn()
        self._claimed = True
        self._burn()

    def unclaim(self) -> None:
        self._burn()
        self._claimed, self._reserved = False, 0
        self._burn()

    def reserve(self, pages: int) -> None:
        self._burn()
        going, self.dissolving = self.dissolving, 0
        for block in self.in_state(POOL)[-going:] if going else ():
            self.offline([block.pfn])
        if pages > len(self.in_state(POOL)):
            raise OperatorError("the kernel has no such number of huge pages left to reserve")
        self._reserved = pages
        self._burn()

    def compact(self, node: int | None) -> None:
        self._burn()
        self.compactions += 1
        self.hidden = 0

    def stalled_seconds(self) -> float:
        self._burn()
        return self.stalled

    def reclaim(self, size_bytes: int) -> None:
        self._burn()
        self.free(size_bytes // BLOCK_BYTES, CACHE)

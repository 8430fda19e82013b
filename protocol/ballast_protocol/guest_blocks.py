"""Blocks on the agent channel: 2 MiB of guest memory, isolated, reported, discarded, released.

A *block* is an aligned 2 MiB of guest memory that the agent has taken out of the guest's hands. It
*reports* blocks, the host *discards* what is behind them and acknowledges. Then they are *held*,
until the agent *releases* them to its guest, and tells the host after it.

What makes this safe, and what both ends promise:

- The host discards the blocks of a report before it acts on anything that came later, and
  acknowledges after that. It discards nothing once it knows that the other end has hung up.
- The agent gives nothing back while a report is unanswered: the guest's kernel, not the agent,
  chooses which blocks go.
- Every `Hello` has an id of its own, every `Welcome` repeats it and begins a new *session*. A host
  refuses reports of any session but the current one. So a welcome to its newest hello tells the
  agent that whatever it, or a predecessor that was killed, has reported until then has been
  discarded already or never will be. The host has one conversation at a time, and has done with
  the bytes of one before it welcomes anybody in the next.
- A session begins with `Holding`: all that the agent holds. The host forgets blocks that are not
  in it, and tells which it knows; the agent reports the others again, and nothing before that.

Requests carry their id in the frame: `BlocksAck`, `HoldingAck`, `SweepDone`, `CompactDone` and the
`BlocksStatus` that answers a goal repeat it. An `ErrorReply` to a report means that none of it was
discarded.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Union

BLOCK_BYTES = 2 << 20
"""Bytes in a block."""
PAGE_BYTES = 4096
"""Bytes in the pages that ranges are counted in."""
PAGES_PER_BLOCK = BLOCK_BYTES // PAGE_BYTES

ANY_NODE = -1
"""In place of a NUMA node: wherever there is memory. Linux's `NUMA_NO_NODE`."""

MAX_REPORT_BLOCKS = 64
"""Blocks in one `BlocksReport`."""
MAX_REPORTS_UNDER_WAY = 2
"""Reports that may be unanswered at a time."""
MAX_RANGES = 4096
"""Ranges in one `Holding`, `HoldingAck` or `BlocksReleased`; what is more takes several."""
MAX_NODES = 1024
MAX_NODE = (1 << 16) - 1
MAX_BLOCK_MEMORY_BYTES = 1 << 52

MIN_SWEEP_SECONDS = 1.0
MAX_SWEEP_SECONDS = 86400.0


class PageRange(NamedTuple):
    """Whole blocks next to each other, on one NUMA node; a list of three numbers on the wire.

    Attributes:
        first_pfn: Guest-physical address divided by 4096; a multiple of `PAGES_PER_BLOCK`.
        pages: How many 4 KiB pages; a multiple of `PAGES_PER_BLOCK`, not zero.
        node: NUMA node in the guest.
    """

    first_pfn: int
    pages: int
    node: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the range."""
        return self.pages * PAGE_BYTES


Ranges = tuple[PageRange, ...]
"""Ranges in ascending order that do not overlap."""


class Purpose(str, Enum):
    """What becomes of the blocks of a report."""

    HOLD = "hold"
    """They stay with the agent, for the goal."""
    SWEEP = "sweep"
    """The guest gets them back when the sweep ends."""


class NodeGoal(NamedTuple):
    """How much to hold on one node, or on `ANY_NODE`; a list of two numbers on the wire."""

    node: int
    size_bytes: int


@dataclass(frozen=True)
class BlocksGoal:
    """Host to agent: hold this much from now on.

    The agent answers with a `BlocksStatus` under the request's id when it has done so, or has found
    that it cannot; a goal that is replaced before that gets no answer. The goal outlives neither
    the session nor the agent.

    Attributes:
        goals: What each node is to contribute, and what `ANY_NODE` is to contribute in addition;
            the sum is what is to be held. Rounded down to whole blocks.
    """

    goals: tuple[NodeGoal, ...]


@dataclass(frozen=True)
class Sweep:
    """Host to agent: report what is free, and give it back; `SweepDone` answers.

    Attributes:
        node: Node to look at, or `ANY_NODE` for all.
    """

    node: int = ANY_NODE


@dataclass(frozen=True)
class SetSweeps:
    """Host to agent: sweep without being asked, from now on. Both None: do not.

    Attributes:
        every_seconds: Sweep this often.
        when_free_bytes: Sweep when so much has become free since the last sweep; the agent waits
            longer after sweeps that found little.
    """

    every_seconds: float | None = None
    when_free_bytes: int | None = None


@dataclass(frozen=True)
class Compact:
    """Host to agent: make the kernel move pages together; `CompactDone` answers."""

    node: int = ANY_NODE


@dataclass(frozen=True)
class CompactDone:
    """Agent to host: the kernel has compacted.

    Attributes:
        seconds: How long it took.
        blocks_before: Free blocks before.
        blocks_after: Free blocks after.
    """

    seconds: float
    blocks_before: int
    blocks_after: int


@dataclass(frozen=True)
class BlocksReport:
    """Agent to host: nobody in the guest uses these; discard what is behind them.

    Attributes:
        session: The welcome's.
        purpose: What becomes of them.
        ranges: At most `MAX_REPORT_BLOCKS` blocks.
    """

    session: int
    purpose: Purpose
    ranges: Ranges


@dataclass(frozen=True)
class BlocksAck:
    """Host to agent: the report under this id is dealt with, the discard included.

    Attributes:
        session: The report's.
        refused: Blocks that were not discarded; the agent gives them back.
        freed_bytes: What the host has really gained; None if it does not know.
    """

    session: int
    refused: Ranges = ()
    freed_bytes: int | None = None


@dataclass(frozen=True)
class BlocksReleased:
    """Agent to host: the guest has these again. Not answered."""

    session: int
    ranges: Ranges


@dataclass(frozen=True)
class Holding:
    """Agent to host: what it holds, at the start of a session; `HoldingAck` answers each part.

    Attributes:
        session: The welcome's.
        ranges: A part of what is held. A block is in one part only.
        last: Whether this was all; the host then forgets what was in none of the parts.
    """

    session: int
    ranges: Ranges
    last: bool


@dataclass(frozen=True)
class HoldingAck:
    """Host to agent: which blocks of a part it knows to be held, and has discarded before.

    Attributes:
        session: The part's.
        known: Blocks of the part.
    """

    session: int
    known: Ranges


@dataclass(frozen=True)
class NodeBlocks:
    """Blocks of one NUMA node of the guest.

    Attributes:
        node: The node.
        total_bytes: Memory that the kernel manages there, what is held included.
        free_bytes: Free memory there.
        free_blocks: Free blocks that could be isolated without compaction.
        held_bytes: Isolated blocks that the host has discarded.
        under_way_bytes: Isolated blocks that are not, or not yet, acknowledged.
    """

    node: int
    total_bytes: int
    free_bytes: int
    free_blocks: int
    held_bytes: int
    under_way_bytes: int


@dataclass(frozen=True)
class BlockCounters:
    """What the agent has done since it started; they only grow.

    Attributes:
        tried_blocks: Blocks that the kernel was asked for.
        isolated_blocks: Blocks that it gave.
        reported_bytes: Bytes in reports that were sent.
        acknowledged_bytes: Bytes that the host has discarded.
        freed_bytes: What the host says it has gained by that.
        released_bytes: Bytes that the guest got back.
        pressure_releases: How often it got them because it needed them.
        sweeps: Sweeps that ended.
        lost_blocks: Isolated blocks that the kernel took away by itself.
        reclaimed_bytes: Page cache that was given up on our request.
    """

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


@dataclass(frozen=True)
class BlocksStatus:
    """Agent to host: where it stands. Sent after every change that matters, and with every report.

    Attributes:
        nodes: Every node that has memory.
        goal_bytes: The goal that it pursues, in whole blocks.
        settled: Whether it has stopped trying: the goal is reached, or `short_reason` says why not.
        reserve_bytes: How much of `MemAvailable` it leaves to the guest when it holds blocks.
        available_bytes: `MemAvailable` as it is.
        pressure: Whether the guest is short of memory, so that nothing is taken from it.
        counters: What was done so far.
        refusing: Why it takes no blocks in this guest; None if it does.
        short_reason: Why less is held than the goal says; None if it is not.
    """

    nodes: tuple[NodeBlocks, ...]
    goal_bytes: int
    settled: bool
    reserve_bytes: int
    available_bytes: int
    pressure: bool
    counters: BlockCounters
    refusing: str | None = None
    short_reason: str | None = None


@dataclass(frozen=True)
class SweepDone:
    """Agent to host: a sweep has ended, and the guest has its memory back.

    Sweeps that nobody asked for are told too, under id zero.

    Attributes:
        seconds: How long it took.
        reason: Why it went no further, in words.
        tried_blocks: Blocks that the kernel was asked for.
        isolated_blocks: Blocks that it gave.
        reported_bytes: Bytes that were acknowledged.
        freed_bytes: What the host says it has gained by that.
    """

    seconds: float
    reason: str
    tried_blocks: int
    isolated_blocks: int
    reported_bytes: int
    freed_bytes: int


def merge_blocks(blocks: Mapping[int, int]) -> Ranges:
    """Return blocks, given as their first page and node, as the fewest ranges."""
    ranges: list[PageRange] = []
    for pfn in sorted(blocks):
        node, last = blocks[pfn], ranges[-1] if ranges else None
        if last is not None and last.node == node and last.first_pfn + last.pages == pfn:
            ranges[-1] = PageRange(last.first_pfn, last.pages + PAGES_PER_BLOCK, node)
        else:
            ranges.append(PageRange(pfn, PAGES_PER_BLOCK, node))
    return tuple(ranges)


def split_blocks(ranges: Ranges) -> dict[int, int]:
    """Return the first page of every block in `ranges`, with its node."""
    return {
        pfn: span.node
        for span in ranges
        for pfn in range(span.first_pfn, span.first_pfn + span.pages, PAGES_PER_BLOCK)
    }


BlockMessage = Union[
    BlocksGoal, Sweep, SetSweeps, Compact, CompactDone, BlocksReport, BlocksAck, BlocksReleased,
    Holding, HoldingAck, BlocksStatus, SweepDone,
]  # fmt: skip
"""The messages that exist since version 2 of the protocol."""

BLOCK_MESSAGES = (
    BlocksGoal, Sweep, SetSweeps, Compact, CompactDone, BlocksReport, BlocksAck, BlocksReleased,
    Holding, HoldingAck, BlocksStatus, SweepDone,
)  # fmt: skip
"""The same, for `isinstance`."""

"""The agent's book: where each isolated block stands with the host, and when blocks may go back.

A block is *new* until it is reported, *under way* until the report is acknowledged, and then
*held*. It is *doubtful* when a report may have reached the host unheard: the agent was killed, or
the connection broke.

Nothing goes back while a report is under way, nor while the host may still act on one that was lost
sight of. That doubt ends with a welcome to the newest hello; or when the connection has been gone
for `DOUBT_SECONDS`, because the host discards nothing for a connection that is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    MAX_RANGES,
    MAX_REPORT_BLOCKS,
    MAX_REPORTS_UNDER_WAY,
    Purpose,
    Ranges,
    merge_blocks,
    split_blocks,
)

DOUBT_SECONDS = 2.0
"""How long after a connection has ended the host may still be about to finish a discard."""


class Standing(Enum):
    """Where a block stands with the host."""

    NEW = "new"
    UNDER_WAY = "under way"
    DOUBTFUL = "doubtful"
    HELD = "held"


@dataclass(frozen=True)
class Flight:
    """A report that is under way.

    Attributes:
        pfns: Its blocks.
        purpose: What becomes of them.
    """

    pfns: tuple[int, ...]
    purpose: Purpose

    @property
    def size_bytes(self) -> int:
        """Bytes in its blocks."""
        return len(self.pfns) * BLOCK_BYTES


class Book:
    """What is known of every isolated block, and of the reports about them."""

    def __init__(self) -> None:
        self._nodes: dict[int, int] = {}
        self._standing: dict[int, Standing] = {}
        self._counts: Counter[tuple[int, Standing]] = Counter()
        self._queue: list[int] = []
        self._flights: dict[int, Flight] = {}
        self._parts: dict[int, tuple[int, ...]] = {}
        self._doubt_until: float | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, blocks: Mapping[int, int], standing: Standing = Standing.NEW) -> None:
        """Enter blocks that were isolated, given with their nodes."""
        self._nodes.update(blocks)
        for pfn in blocks:
            self._set(pfn, standing)

    def add_unknown(self, blocks: Mapping[int, int]) -> None:
        """Enter those of these blocks that are not in the book as new."""
        unknown = blocks.keys() - self._nodes.keys()
        if unknown:
            self.add({pfn: blocks[pfn] for pfn in unknown})

    def remove(self, pfns: Iterable[int]) -> None:
        """Strike out blocks that the guest has again."""
        for pfn in pfns:
            if pfn in self._nodes:
                node = self._nodes.pop(pfn)
                self._counts[node, self._standing.pop(pfn)] -= 1

    def without(self, blocks: Mapping[int, int]) -> list[int]:
        """Return the blocks of the book that are not among these."""
        return sorted(self._nodes.keys() - blocks.keys())

    def count(self, *standings: Standing, node: int | None = None) -> int:
        """Return how many blocks stand so, on one node or on all."""
        return sum(
            count
            for (home, standing), count in self._counts.items()
            if standing in standings and node in (None, home)
        )

    def per_node(self) -> dict[int, int]:
        """Return how many blocks there are on each node that has any."""
        counts: Counter[int] = Counter()
        for (node, _), count in self._counts.items():
            counts[node] += count
        return dict(+counts)

    def _set(self, pfn: int, standing: Standing) -> None:
        node, before = self._nodes[pfn], self._standing.get(pfn)
        if before is not None:
            self._counts[node, before] -= 1
        self._counts[node, standing] += 1
        self._standing[pfn] = standing
        if standing is Standing.NEW:
            self._queue.append(pfn)

    def ranges(self, pfns: Iterable[int]) -> Ranges:
        """Return these blocks as ranges."""
        return merge_blocks({pfn: self._nodes[pfn] for pfn in pfns})

    # Reports

    @property
    def has_room(self) -> bool:
        """Whether another report may be sent now."""
        return len(self._flights) < MAX_REPORTS_UNDER_WAY

    @property
    def is_waiting(self) -> bool:
        """Whether any report is under way."""
        return bool(self._flights)

    def next_report(self) -> tuple[int, ...]:
        """Return the new blocks that the next report should have; none if there are none."""
        # A block that was struck out and came back is in the queue twice.
        new = {pfn for pfn in self._queue if self._standing.get(pfn) is Standing.NEW}
        self._queue = sorted(new)
        return tuple(self._queue[:MAX_REPORT_BLOCKS])

    def depart(self, report_id: int, flight: Flight) -> None:
        """Enter that a report is being sent; call it before the first byte is."""
        self._flights[report_id] = flight
        for pfn in flight.pfns:
            self._set(pfn, Standing.UNDER_WAY)

    def land(self, report_id: int, refused: Ranges = ()) -> Flight | None:
        """Enter that a report was answered; return it, or None if no such report is under way.

        Blocks that the host refused are new again.
        """
        flight = self._flights.pop(report_id, None)
        if flight is not None:
            unwanted = split_blocks(refused)
            for pfn in flight.pfns:
                if pfn in self._standing:
                    self._set(pfn, Standing.NEW if pfn in unwanted else Standing.HELD)
        return flight

    def renew(self, pfns: Iterable[int]) -> None:
        """Enter that the host has taken none of these after all."""
        for pfn in pfns:
            if pfn in self._standing:
                self._set(pfn, Standing.NEW)

    # Doubt

    def may_release(self, now: float) -> bool:
        """Tell whether blocks may go back: no report can have any effect any more."""
        doubt = self._doubt_until
        return not self._flights and (doubt is None or now >= doubt)

    @property
    def doubt_ends(self) -> float | None:
        """When the doubt ends by itself; None if there is none, or it does not."""
        return None if self._doubt_until == float("inf") else self._doubt_until

    def lose_sight(self) -> None:
        """The host is asked to begin anew: reports under way will not be answered any more."""
        if self._flights:
            self._doubt_until = float("inf")
        self._ground()

    def connection_began(self, now: float) -> None:
        """There is a host again: it may have been sent reports that it has not yet looked at."""
        if self._doubt_until is not None:
            self._doubt_until = None if now >= self._doubt_until else float("inf")

    def connection_ended(self, now: float) -> None:
        """The connection is gone; what the host was doing for it, it will soon have done."""
        if self._flights or self._doubt_until is not None:
            self._doubt_until = now + DOUBT_SECONDS
        self._ground()

    def doubt(self, now: float) -> None:
        """A predecessor may have had a report under way."""
        self._doubt_until = now + DOUBT_SECONDS

    def trust(self) -> None:
        """The host has welcomed the newest hello: what was said before it is over and done."""
        self._doubt_until = None

    def _ground(self) -> None:
        for flight in self._flights.values():
            for pfn in flight.pfns:
                if pfn in self._standing:
                    self._set(pfn, Standing.DOUBTFUL)
        self._flights.clear()
        self._parts.clear()

    # Holdings

    def holdings(self) -> list[Ranges]:
        """Return what the host may know of, in parts; at least one, which may be empty."""
        known = (Standing.HELD, Standing.DOUBTFUL)
        ranges = self.ranges(pfn for pfn, s in self._standing.items() if s in known)
        return [ranges[i : i + MAX_RANGES] for i in range(0, max(1, len(ranges)), MAX_RANGES)]

    def ask(self, request_id: int, part: Ranges) -> None:
        """Enter that a part of the holdings is being sent."""
        self._parts[request_id] = tuple(split_blocks(part))

    @property
    def is_asking(self) -> bool:
        """Whether the host has yet to say what it knows; nothing is reported until then."""
        return bool(self._parts)

    def settle(self, request_id: int, known: Ranges) -> None:
        """Enter which blocks of a part the host knows; the others are new again."""
        theirs = split_blocks(known)
        for pfn in self._parts.pop(request_id, ()):
            if pfn in self._standing:
                self._set(pfn, Standing.HELD if pfn in theirs else Standing.NEW)

"""Watches the guest's memory while blocks are isolated, and says how many it needs back."""

from __future__ import annotations

import logging

from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.limits import Limits, Pressure
from ballast_agent.blocks.plan import from_neediest, to_give
from ballast_agent.blocks.status import Counts
from ballast_agent.blocks.supply import supplies
from ballast_agent.blocks.taker import Goal
from ballast_agent.text import human_bytes
from ballast_protocol.guest_blocks import BLOCK_BYTES

log = logging.getLogger(__name__)


class Guard:
    """Knows what the guest needs back.

    Attributes:
        owed: Blocks that are to go back at once.
        pressure: The rules.
    """

    def __init__(self, kernel: Kernel, limits: Limits, counts: Counts) -> None:
        self.owed = 0
        self.pressure = Pressure(limits)
        self._kernel = kernel
        self._limits = limits
        self._counts = counts
        self._watch_seconds = 0.0
        self._stalled = self._complained = False

    def stall(self) -> None:
        """PSI has raised its alarm."""
        self._stalled = True

    def available(self) -> int:
        """Return what the guest can still allocate, in bytes."""
        return self._kernel.meminfo().get("MemAvailable", 0)

    def watch(self, blocks: int, now: float, *, sweeping: bool) -> bool:
        """See whether the guest needs some of `blocks` back; tell whether it began to."""
        stalled, self._stalled = self._stalled, False
        if not blocks or self.owed:
            return False
        available = self.available()
        self._watch_seconds = self._limits.watch_seconds(available, sweeping=sweeping)
        if not self.pressure.look(available, stalled=stalled, sweeping=sweeping):
            return False
        self.owed = self.pressure.respond(available, blocks, now)
        self._counts.pressure_releases += 1
        have, back = human_bytes(available), human_bytes(self.owed * BLOCK_BYTES)
        log.warning("the guest is short of memory (%s available): it gets %s back", have, back)
        return True

    def deadline(self, now: float) -> float:
        """Return when to look again while blocks are isolated."""
        return now + self._watch_seconds

    def wait(self) -> None:
        """A report is under way, so nothing can go back now."""
        if self.owed and not self._complained:
            self._complained = True
            log.warning("nothing can go back before the host has answered a report")

    def settle(self) -> None:
        """What was owed has gone back."""
        self.owed = 0
        self._complained = False

    def beyond(self, goal: Goal, held: dict[int, int], *, sweeping: bool) -> dict[int, int]:
        """Return how many blocks each node gets back: what the goal leaves over, or more if owed.

        Args:
            goal: What is to be held; a sweep may hold more.
            held: What is, by node.
            sweeping: Whether a sweep goes on.
        """
        excess = not sweeping and bool(to_give(goal.blocks, held, {}))
        if not excess and not self.owed:
            return {}
        free = {node: each.free_bytes for node, each in supplies(self._kernel).items()}
        counts = to_give(goal.blocks, held, free) if excess else {}
        rest = {node: count - counts.get(node, 0) for node, count in held.items()}
        more = from_neediest(rest, free, self.owed - sum(counts.values()))
        return {node: counts.get(node, 0) + more.get(node, 0) for node in {*counts, *more}}

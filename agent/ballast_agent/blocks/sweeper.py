"""The sweep that goes on, if one does, from its beginning to what the host is told at its end."""

from __future__ import annotations

import logging

from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.status import Counts
from ballast_agent.blocks.supply import supplies
from ballast_agent.blocks.sweeps import SweepRun, SweepSchedule
from ballast_agent.text import human_bytes
from ballast_protocol.guest import short_text
from ballast_protocol.guest_blocks import ANY_NODE, SetSweeps, SweepDone

log = logging.getLogger(__name__)


class Sweeper:
    """Knows whether a sweep goes on, and when the next one is due.

    Attributes:
        run: The sweep that goes on; None if none does.
    """

    def __init__(self, kernel: Kernel, settings: SetSweeps, counts: Counts) -> None:
        self.run: SweepRun | None = None
        self._kernel = kernel
        self._counts = counts
        self._schedule = SweepSchedule(settings)

    def start(self, now: float) -> None:
        """Begin to count the time."""
        self._schedule.start(now)

    def set(self, settings: SetSweeps, now: float) -> None:
        """Sweep unasked as the host wants it from now on."""
        self._schedule.set(settings, now)

    def deadline(self) -> float | None:
        """Return when to ask again whether a sweep is due; None if never."""
        return self._schedule.deadline()

    def begin(self, request_id: int, node: int, now: float) -> SweepDone | None:
        """Begin a sweep that was asked for; return what to answer if there can be none now."""
        run = SweepRun(request_id, node, now)
        if self.run is None:
            self.run = run
            return None
        run.ending = "another sweep goes on"
        return run.done(now)

    def look(self, now: float) -> None:
        """Begin a sweep if one is due that nobody has to ask for."""
        if self.run is None and self._schedule.is_due(self._free_bytes, now):
            self.run = SweepRun(0, ANY_NODE, now)

    def end(self, reason: str) -> None:
        """Let the sweep go no further; it is over when its reports are answered."""
        if self.run is not None and self.run.ending is None:
            self.run.ending = short_text(reason)

    @property
    def is_ending(self) -> bool:
        """Whether a sweep goes no further."""
        return self.run is not None and self.run.ending is not None

    def landed(self, size_bytes: int, freed_bytes: int) -> None:
        """A report was acknowledged."""
        if self.run is not None:
            self.run.reported_bytes += size_bytes
            self.run.freed_bytes += freed_bytes

    def finish(self, run: SweepRun, now: float) -> SweepDone:
        """The guest has its memory back: return what to tell the host."""
        self._counts.sweeps += 1
        self._schedule.swept(run, self._free_bytes(), now)
        done = run.done(now)
        told, gained = human_bytes(done.reported_bytes), human_bytes(done.freed_bytes)
        log.info("a sweep has reported %s, the host gained %s: %s", told, gained, done.reason)
        return done

    def _free_bytes(self) -> int:
        return sum(each.free_block_bytes for each in supplies(self._kernel).values())

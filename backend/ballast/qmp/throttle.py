"""At most one event of a kind per period, the newest value last: QEMU's rule for its monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Event = TypeVar("Event")


@dataclass
class _Period(Generic[Event]):
    ends_at: float
    newest: Event | None = None


class EventThrottle(Generic[Event]):
    """Paces events that may come too often. Time is an argument, in seconds from any origin.

    The first event of a kind passes at once and begins a period. Of those that come during the
    period the last one passes at its end, which begins the next; a period without any ends the
    pacing (QEMU's monitor/monitor.c). Kinds without a period always pass.
    """

    def __init__(self, period_seconds: dict[str, float]) -> None:
        self._period_seconds = period_seconds
        self._running: dict[str, _Period[Event]] = {}

    def offer(self, kind: str, event: Event, now: float) -> bool:
        """Return whether to send this event now; if not, it is kept for the period's end."""
        if kind not in self._period_seconds:
            return True
        period = self._running.get(kind)
        if period is None:
            self._running[kind] = _Period(now + self._period_seconds[kind])
            return True
        period.newest = event
        return False

    def forget(self, kind: str) -> None:
        """Do not send an event that was kept: another one has overtaken it."""
        if kind in self._running:
            self._running[kind].newest = None

    def next_end(self) -> float | None:
        """Return when a period ends next, or None if none is running."""
        return min((period.ends_at for period in self._running.values()), default=None)

    def expire(self, now: float) -> list[Event]:
        """End the periods that are over, and return the events that were kept in them."""
        due: list[Event] = []
        for kind, period in list(self._running.items()):
            if period.ends_at > now:
                continue
            if period.newest is None:
                del self._running[kind]
            else:
                due.append(period.newest)
                self._running[kind] = _Period(now + self._period_seconds[kind])
        return due

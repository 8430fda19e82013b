"""How much memory is left to the guest, and when it needs back what was taken. Pure rules.

`MemAvailable` is the measure: what the guest can still allocate without swapping. Blocks are taken
for the goal while it stays above the *reserve*, for a sweep while it stays above the smaller *sweep
reserve*, because a sweep is over in a moment. Below the *alarm*, half of whichever applies, the
guest is under pressure. Between the alarm and the reserve nothing happens in either direction.

Stalls (PSI) are a second alarm. They alone do not tell whether memory is short in the whole guest
or just in one container at its own limit, so they count only below the *stall level*.
"""

from __future__ import annotations

from dataclasses import dataclass

from ballast_protocol.guest_blocks import BLOCK_BYTES

MIB = 1 << 20

RESERVE_SHARE = 0.05
MIN_RESERVE_BYTES = 48 * MIB
MAX_RESERVE_BYTES = 2048 * MIB
STALL_LEVEL_RESERVES = 4
"""Stalls count while less than so many reserves is available."""

HOLD_OFF_SECONDS = 15.0
"""How long nothing is taken after pressure; doubled each time that it comes back soon."""
MAX_HOLD_OFF_SECONDS = 600.0
CALM_SECONDS = 120.0
"""After so long without pressure or hold-off the next one is the shortest again."""
AGAIN_SECONDS = 3.0
"""Pressure that is back so soon means that a part was not enough: all goes back."""
MIN_RELEASE_SHARE = 0.25
"""At least this share of what is held goes back in one step."""

FASTEST_BYTES_PER_SECOND = 1024 * MIB
"""A guest that takes memory no faster is seen to be short of it before it has none."""
MIN_WATCH_SECONDS = 0.01
MAX_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """How much of `MemAvailable` stays with the guest.

    Attributes:
        reserve_bytes: What holding leaves.
    """

    reserve_bytes: int

    @classmethod
    def of(cls, total_bytes: int, reserve_bytes: int | None = None) -> Limits:
        """Return the limits of a guest with so much memory, unless a reserve was asked for."""
        if reserve_bytes is None:
            share = int(total_bytes * RESERVE_SHARE)
            reserve_bytes = min(max(share, MIN_RESERVE_BYTES), MAX_RESERVE_BYTES)
        return cls(reserve_bytes)

    @property
    def sweep_reserve_bytes(self) -> int:
        """What a sweep leaves."""
        return self.reserve_bytes // 2

    def alarm_bytes(self, *, sweeping: bool) -> int:
        """Return the level of `MemAvailable` below which the guest is under pressure."""
        return (self.sweep_reserve_bytes if sweeping else self.reserve_bytes) // 2

    def spare_blocks(self, available_bytes: int, *, sweeping: bool) -> int:
        """Return how many blocks can be taken without touching the reserve."""
        reserve = self.sweep_reserve_bytes if sweeping else self.reserve_bytes
        return max(0, available_bytes - reserve) // BLOCK_BYTES

    def watch_seconds(self, available_bytes: int, *, sweeping: bool) -> float:
        """Return how soon to look again: before the guest can have taken all above the alarm."""
        above = available_bytes - self.alarm_bytes(sweeping=sweeping)
        soon = above / FASTEST_BYTES_PER_SECOND
        return min(max(soon, MIN_WATCH_SECONDS), MAX_WATCH_SECONDS)


class Pressure:
    """Notices pressure, and decides how much goes back and for how long nothing is taken."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hold_off = HOLD_OFF_SECONDS
        self._calm_at: float | None = None
        self._last: float | None = None

    def is_on(self, now: float) -> bool:
        """Tell whether nothing may be taken, because the guest was short of memory just now."""
        return self._calm_at is not None and now < self._calm_at

    @property
    def ends(self) -> float | None:
        """When the hold-off ends."""
        return self._calm_at

    def look(self, available_bytes: int, *, stalled: bool, sweeping: bool) -> bool:
        """Tell whether the guest needs memory back at this moment.

        Args:
            available_bytes: `MemAvailable`.
            stalled: Whether PSI has raised its alarm.
            sweeping: Whether a sweep is what took the memory.
        """
        stall_level = STALL_LEVEL_RESERVES * self._limits.reserve_bytes
        if sweeping:
            # To take nearly everything for a moment is what a sweep is.
            stall_level = self._limits.alarm_bytes(sweeping=True)
        short = available_bytes < self._limits.alarm_bytes(sweeping=sweeping)
        return short or (stalled and available_bytes < stall_level)

    def respond(self, available_bytes: int, blocks: int, now: float) -> int:
        """Return how many of `blocks` go back now, and begin or prolong the hold-off."""
        again = self._last is not None and now - self._last < AGAIN_SECONDS
        if self._calm_at is None or now - self._calm_at > CALM_SECONDS:
            self._hold_off = HOLD_OFF_SECONDS
        elif not self.is_on(now):
            self._hold_off = min(2 * self._hold_off, MAX_HOLD_OFF_SECONDS)
        self._last = now
        self._calm_at = now + self._hold_off
        wanted = 2 * self._limits.reserve_bytes - available_bytes
        needed = max(-(-wanted // BLOCK_BYTES), int(blocks * MIN_RELEASE_SHARE), 1)
        return blocks if again else min(blocks, needed)

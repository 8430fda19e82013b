"""How often an agent speaks, and how much of the daemon's time it may take with what it says.

A guest that says much has to wait, and nobody else has. Short bursts pass at once, because an agent
that hands over a gibibyte has a few kilobytes to say about it, and is waited for.
"""

from __future__ import annotations

from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS

DEFAULT_INTERVAL_SECONDS = 5.0
"""Between two memory reports."""

READ_BYTES_PER_SECOND = 256 * 1024
MESSAGE_COST_BYTES = 4 * 1024
"""What a message, or a search for the next one, counts as in addition to its bytes."""

DISCARD_BYTES_PER_SECOND = 4 << 30
"""Memory that a guest's reports may give back, each second, once the burst is used up. It takes the
thread about a third of that time."""

BURST_SECONDS = 1.0
"""How much a guest that was quiet may say at once, in seconds of the rates above."""


class Pace:
    """A token bucket in seconds. Time is an argument, in seconds from any origin."""

    def __init__(self) -> None:
        self._paid_until = float("-inf")

    def spend(self, size_bytes: int, messages: int, discarded_bytes: int, now: float) -> float:
        """Take note of what was read and done; return how many seconds to pause before more."""
        cost = (size_bytes + messages * MESSAGE_COST_BYTES) / READ_BYTES_PER_SECOND
        cost += discarded_bytes / DISCARD_BYTES_PER_SECOND
        self._paid_until = max(self._paid_until, now - BURST_SECONDS) + cost
        return max(0.0, self._paid_until - now)


def check_interval(seconds: float) -> None:
    """Check that memory reports can come this often.

    Raises:
        OperatorError: They cannot.
    """
    if not MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
        raise OperatorError(
            f"{seconds:g} s is no interval for reports",
            hint=f"Choose {MIN_INTERVAL_SECONDS:g} to {MAX_INTERVAL_SECONDS:g} seconds.",
        )

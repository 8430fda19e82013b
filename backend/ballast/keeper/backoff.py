"""How long to wait before a worker is started again."""

from __future__ import annotations

SERVED_WELL_SECONDS = 1.0
"""A worker that served that long was not one of a row of failures."""

FIRST_SECONDS = 0.05
MAX_SECONDS = 10.0


class BackOff:
    """Counts failures in a row: the first costs no time, for guests wait."""

    def __init__(self) -> None:
        self._failures = 0

    def after(self, served_seconds: float) -> float:
        """Return the pause after a worker that served for a time; 0 for one that never did."""
        self._failures = 0 if served_seconds >= SERVED_WELL_SECONDS else self._failures + 1
        if self._failures <= 1:
            return 0.0
        return float(min(MAX_SECONDS, FIRST_SECONDS * 2 ** min(self._failures - 2, 16)))

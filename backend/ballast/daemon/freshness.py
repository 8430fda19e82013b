"""How old a guest's statistics really are."""

from __future__ import annotations

import time
from collections.abc import Callable


class Freshness:
    """Remembers when statistics came, by a clock that nobody sets.

    The wall clock, which `last-update` is of, can be set back, and old values would look new. Of
    statistics that a predecessor left only that is known, so they are no younger than this process.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_seconds: Callable[[], float] = time.time,
    ) -> None:
        """Begin with a guest that has sent nothing to this process.

        Args:
            clock: Seconds from any origin, steady.
            unix_seconds: The wall clock.
        """
        self._clock = clock
        self._unix_seconds = unix_seconds
        self._began = clock()
        self._updates = 0
        self._came: float | None = None

    def note(self, updates: int) -> None:
        """Take note that so many buffers with new values have come; a repeated one is not new."""
        if updates != self._updates:
            self._updates, self._came = updates, self._clock()

    def age_seconds(self, last_update: int) -> float | None:
        """Return how old the last ones are.

        Args:
            last_update: When they came, in Unix seconds; 0 if none ever did.
        """
        if not last_update:
            return None
        if self._came is not None:
            return self._clock() - self._came
        return max(self._unix_seconds() - last_update, self._clock() - self._began)

"""How long to wait before the next attempt to reach a broker."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that double up to a bound, each shortened by chance.

    The chance keeps a fleet from reaching a broker that has just come back in the same instant.

    Attributes:
        attempts: How many attempts have failed in a row.
    """

    def __init__(
        self, first_seconds: float, max_seconds: float, chance: Callable[[], float]
    ) -> None:
        """Begin with the shortest delay.

        Args:
            first_seconds: The first delay before chance shortens it.
            max_seconds: The longest one.
            chance: Gives numbers from 0 to 1.
        """
        self.attempts = 0
        self._first = min(first_seconds, max_seconds)
        self._max = max_seconds
        self._chance = chance

    def lost(self, lasted_seconds: float) -> float:
        """Return the delay after a connection that lasted so long; 0 if none came about.

        One that ends sooner than it took to get it, as two daemons with the same client id do to
        each other, counts as a failed attempt.
        """
        if lasted_seconds > self._delay():
            self.attempts = 0
        delay = self._delay()
        self.attempts += 1
        return delay * (0.5 + 0.5 * self._chance())

    def _delay(self) -> float:
        # The exponent is bounded, because a broker may be away for years.
        return min(self._max, self._first * 2.0 ** min(self.attempts, 40))

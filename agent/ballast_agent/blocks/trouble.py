"""Why no blocks are taken in this guest, and until when."""

from __future__ import annotations

import logging

from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import short_text

SWITCHED_OFF = "switched off in the guest (--no-blocks)"
TROUBLE_SECONDS = 30.0
"""How long nothing is taken after the kernel or the host has refused something."""

log = logging.getLogger(__name__)


class Trouble:
    """What keeps the agent from taking blocks.

    Attributes:
        ends: When to try again, if there is trouble.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.ends: float | None = None
        self._enabled = enabled
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why blocks are not taken; None if they may be."""
        return self._reason if self._enabled else SWITCHED_OFF

    def begin(self, error: OperatorError, now: float) -> None:
        """Something is wrong with the kernel, or with how the guest uses it."""
        reason = short_text(str(error))
        if reason != self._reason:
            hint = f" ({error.hint})" if error.hint else ""
            log.warning("no blocks are taken for now: %s%s", error, hint)
        self._reason = reason
        self.ends = now + TROUBLE_SECONDS

    def look(self, now: float) -> bool:
        """See whether it is time to try again; tell whether trouble has ended."""
        if self.ends is None or now < self.ends:
            return False
        self._reason = self.ends = None
        return True

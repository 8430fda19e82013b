"""What a process that serves VMs knows of whoever keeps its descriptors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ballast.keeper.client import Takeover
from ballast_protocol.errors import OperatorError

Mode = Literal["none", "parent", "service", "systemd"]
"""Who keeps: nobody, the parent process, `ballast keeper`, or systemd."""

_NO_UPGRADE = {
    "none": (
        "nothing keeps QEMU's connections while this process is replaced",
        "Serve without --no-keeper.",
    ),
    "service": (
        "its keeper starts no processes",
        "Stop this process and start the new version: it gets everything from the keeper.",
    ),
    "systemd": (
        "systemd keeps its descriptors",
        "Restart the service: the new version gets everything from systemd.",
    ),
}


@dataclass
class Kept:
    """Who keeps, and what happened so far.

    Attributes:
        mode: Who keeps.
        takeover: Why this process serves, and what became of upgrades since.
        keeper_pid: The keeper's process, 0 if it is in another container; None if there is none, or
            it is gone.
        gap_seconds: How long QEMU and guests waited for this process; None if nobody did.
        ask: Asks the keeper for an upgrade.
    """

    mode: Mode = "none"
    takeover: Takeover = field(default_factory=Takeover)
    keeper_pid: int | None = None
    gap_seconds: float | None = None
    ask: Callable[[], None] = lambda: None

    def serving(self) -> None:
        """Note that the wait is over."""
        if self.takeover.since_ns is not None:
            self.gap_seconds = (time.monotonic_ns() - self.takeover.since_ns) / 1e9

    @property
    def is_restart(self) -> bool:
        """Whether this process took over from another."""
        return self.takeover.kind in ("restart", "upgrade", "upgrade-failed")

    @property
    def reason(self) -> str:
        """Why it did, in words; empty if it did not."""
        if not self.is_restart:
            return ""
        if self.takeover.kind == "upgrade-failed":
            return f"upgrade failed: {self.takeover.reason}"
        return self.takeover.reason or "the worker before this one ended"

    def upgrade(self) -> None:
        """Ask for a new version to take over; what becomes of it is in `status`.

        Raises:
            OperatorError: Nobody can do that here.
        """
        if self.mode != "parent":
            message, hint = _NO_UPGRADE[self.mode]
            raise OperatorError(f"this process cannot be replaced: {message}", hint=hint)
        if self.keeper_pid is None:
            raise OperatorError("this process cannot be replaced: its keeper is gone")
        self.ask()

    def status(self) -> dict[str, object]:
        """Return all of it, ready for JSON."""
        return {
            "mode": self.mode,
            "keeper-pid": self.keeper_pid,
            "worker-pid": os.getpid(),
            "restarts": self.takeover.restarts,
            "upgrades": self.takeover.upgrades,
            "last-reason": self.reason,
            "last-gap-seconds": self.gap_seconds,
            "upgrade-attempts": self.takeover.attempts,
            "upgrade-error": self.takeover.upgrade_error,
        }

"""Counters that go on when another process serves the VM.

They are kept in memory that outlives the process before they are told, so nothing that was told is
taken back; and every few seconds besides. What happened after that is lost with a process that is
killed: to keep each step would cost more than it is worth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ballast.guest_status import hyphenated

KEEP_SECONDS = 10.0


@dataclass(frozen=True)
class CountersState:
    """All counters of a VM, by group and name."""

    groups: dict[str, dict[str, int]] = field(default_factory=dict)


class KeptCounters:
    """The counters of one VM, each group a dataclass of whole numbers."""

    def __init__(
        self,
        groups: Mapping[str, object],
        left: CountersState | None,
        save: Callable[[CountersState], None],
    ) -> None:
        """Have the counters go on from what a predecessor has left.

        Args:
            groups: The counters, by a name that successors know too.
            left: What a predecessor has left; None if there was none.
            save: Keeps the present ones for a successor.
        """
        self._groups: Mapping[str, Any] = groups
        self._save = save
        self._saved = left or CountersState()
        self._timer: asyncio.TimerHandle | None = None
        for name, group in self._groups.items():
            for counter, value in self._saved.groups.get(name, {}).items():
                if hasattr(group, counter):
                    setattr(group, counter, value)

    def start(self) -> None:
        """Keep them every few seconds, in the running event loop."""
        self.keep()
        self._timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self.start)

    def keep(self) -> None:
        """Keep what is counted by now; to be called before it is told to anybody."""
        state = CountersState({name: _values(group) for name, group in self._groups.items()})
        if state != self._saved:
            self._saved = state
            self._save(state)

    def told(self, name: str) -> dict[str, object]:
        """Return one group for JSON, all being kept: call it whenever any of them is told."""
        self.keep()
        return hyphenated(self._saved.groups[name])

    def close(self) -> None:
        """Keep nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _values(group: Any) -> dict[str, int]:
    return {each.name: getattr(group, each.name) for each in fields(group)}

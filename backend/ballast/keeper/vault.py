"""Descriptors by name, of a bounded number."""

from __future__ import annotations

import os
from collections.abc import Iterator

LISTENER, CONNECTION = "/listener", "/connection"
"""How the names end of the socket where a VM's QEMU connects, and of its connection."""

LASTING = ("/listener", "/qmp-listener", "/agent-listener", "/agent", "/lock", "/wishes")
"""How the names end of what a VM keeps when its QEMU has gone."""

ALIVE = "alive"
"""The name of the eventfd to which a worker adds now and then, to show that it does not hang."""


class VaultFullError(Exception):
    """No more descriptors can be held."""


class Vault:
    """Owns the descriptors that are held for the workers."""

    def __init__(self, limit: int) -> None:
        """Make an empty one.

        Args:
            limit: How many descriptors to hold at most.
        """
        self._limit = limit
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> int:
        return self._held[name]

    def names(self) -> list[str]:
        """Return the names of what is held, oldest first."""
        return list(self._held)

    def named(self, ending: str) -> Iterator[tuple[str, int]]:
        """Yield what is held under names that end so."""
        return ((name, fd) for name, fd in self._held.items() if name.endswith(ending))

    def put(self, name: str, fd: int) -> int | None:
        """Own a descriptor, instead of an older one of that name, which is the caller's then.

        Raises:
            VaultFullError: There are too many; the new one stays the caller's.
        """
        if name not in self._held and len(self._held) >= self._limit:
            raise VaultFullError(f"{self._limit} descriptors are held already")
        old = self._held.get(name)
        self._held[name] = fd
        return old

    def take(self, name: str) -> int | None:
        """Return a descriptor, which is the caller's then; None if none has that name."""
        return self._held.pop(name, None)

    def close(self) -> None:
        """Let everything go."""
        while self._held:
            os.close(self._held.popitem()[1])

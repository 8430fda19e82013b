"""A store as successive processes see it, all of them in this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ballast.streams.fdstore import MemoryStore, VmStore
from support.fds import none_left_open

VM = "vm"


class Processes:
    """One VM's store, and the parts of it that processes have been given."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._parts: list[VmStore] = []

    def part(self) -> VmStore:
        """Return what the next process finds."""
        self._parts.append(VmStore(self._store, VM, self._store.take_all()))
        return self._parts[-1]

    @property
    def held(self) -> set[str]:
        """What is in the store."""
        return {name.removeprefix(f"{VM}/") for name in self._store.held}

    def file_id(self, what: str) -> tuple[int, int]:
        """Return which file is stored under a name."""
        status = os.fstat(self._store.held[f"{VM}/{what}"])
        return status.st_dev, status.st_ino

    def close(self) -> None:
        """Close what no process has taken."""
        for part in self._parts:
            for what in part.left:
                fd = part.take(what)
                assert fd is not None
                os.close(fd)


@contextmanager
def processes() -> Iterator[Processes]:
    """Keep descriptors while the context lasts; at its end none may be left open."""
    with none_left_open(), MemoryStore() as store:
        found = Processes(store)
        yield found
        found.close()

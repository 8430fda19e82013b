"""Where a process leaves descriptors that have to outlive it.

The semantics are those of systemd's file descriptor store: descriptors by name, kept until they are
dropped or replaced; whoever comes next gets all of them. A name is `VM/WHAT`, where `WHAT` is for
example `listener`, `connection`, `state` or `kick.0`.
"""

from __future__ import annotations

import os
import re
from types import TracebackType
from typing import Protocol

from ballast_protocol.errors import InternalError

MAX_NAME_BYTES = 255
"""As long as a name of systemd's may be."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")


def check_name(name: str) -> str:
    """Return a name if a descriptor can be stored under it.

    Raises:
        InternalError: It is too long, or holds characters that one of the stores does not take.
    """
    if len(name) > MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise InternalError(f"no descriptor can be stored under the name {name!r}")
    return name


class FdStore(Protocol):
    """Holds descriptors beyond the life of this process, by name."""

    def put(self, name: str, fd: int) -> None:
        """Store a duplicate of a descriptor, instead of an older one of that name.

        The caller's own stays the caller's. The duplicate is safe as soon as this returns.

        Raises:
            InternalError: The name cannot be one.
        """

    def drop(self, name: str) -> None:
        """Let a descriptor go; one that is not stored is none to complain of."""

    def take_all(self) -> dict[str, int]:
        """Return what a predecessor left, by name; to be called once, before anything is stored.

        Each descriptor is the caller's, who closes it. The store goes on holding its own until
        it is told to drop them.
        """


class NoStore:
    """Keeps nothing: what a process holds ends with it."""

    def put(self, name: str, fd: int) -> None:
        """Check the name, and that is all."""
        check_name(name)

    def drop(self, name: str) -> None:
        """Do nothing."""

    def take_all(self) -> dict[str, int]:
        """Return nothing."""
        return {}


class MemoryStore:
    """Keeps descriptors in this process, for a successor in the same process: in tests.

    Attributes:
        held: The store's own descriptors by name, to be looked at.
    """

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def put(self, name: str, fd: int) -> None:
        """Store a duplicate of a descriptor, instead of an older one of that name.

        Raises:
            InternalError: The name cannot be one.
        """
        check_name(name)
        duplicate = os.dup(fd)
        self.drop(name)
        self.held[name] = duplicate

    def drop(self, name: str) -> None:
        """Let a descriptor go, if there is one of that name."""
        fd = self.held.pop(name, None)
        if fd is not None:
            os.close(fd)

    def take_all(self) -> dict[str, int]:
        """Return duplicates of everything held, which are the caller's."""
        return {name: os.dup(fd) for name, fd in self.held.items()}

    def close(self) -> None:
        """Let everything go."""
        for name in list(self.held):
            self.drop(name)

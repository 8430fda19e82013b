"""Where a process leaves descriptors that have to outlive it.

The semantics are those of systemd's file descriptor store: descriptors by name, kept until they are
dropped or replaced; whoever comes next gets all of them. A name is `VM/WHAT`, where `WHAT` is for
example `listener`, `connection`, `state` or `kick.0`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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
    """Holds descriptors beyond the life of this process, by name.

    Attributes:
        accepts: Whether the store's owner accepts the connection of a VM that has none stored, and
            stores it itself. Then the listener is left alone until there is one.
    """

    accepts: bool

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

    accepts = False

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

    accepts = False

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


class VmStore:
    """One VM's part of a store, and what its predecessor left there for it.

    Attributes:
        accepts: As the store's.
    """

    def __init__(self, store: FdStore, vm: str, left: Mapping[str, int]) -> None:
        """Take over what was left for a VM.

        Args:
            store: The whole store.
            vm: The VM's name.
            left: What the store's `take_all` returned, or what is left of it. What is not the VM's
                stays the caller's.
        """
        self.accepts = store.accepts
        self._store = store
        self._prefix = f"{vm}/"
        self._is_frozen = False
        self._left = {
            name.removeprefix(self._prefix): fd
            for name, fd in left.items()
            if name.startswith(self._prefix)
        }

    @property
    def left(self) -> tuple[str, ...]:
        """What the predecessor left and nobody has taken yet, without the VM's name."""
        return tuple(self._left)

    def put(self, what: str, fd: int) -> None:
        """Store a duplicate of a descriptor, instead of an older one of that name.

        Raises:
            InternalError: The name cannot be one.
        """
        if not self._is_frozen:
            self._forget(what)
            self._store.put(self._prefix + what, fd)

    def drop(self, what: str) -> None:
        """Let a descriptor go, if there is one of that name."""
        if not self._is_frozen:
            self._forget(what)
            self._store.drop(self._prefix + what)

    def _forget(self, what: str) -> None:
        """Give up what the predecessor left under a name that has another meaning from now on."""
        fd = self._left.pop(what, None)
        if fd is not None:
            os.close(fd)

    def take(self, what: str) -> int | None:
        """Return what the predecessor left, which is the caller's then; the store keeps its own."""
        return self._left.pop(what, None)

    def freeze(self) -> None:
        """Have the store stay as it is from now on, for another attempt with what is there."""
        self._is_frozen = True

    def drop_rest(self) -> None:
        """Let go of what the predecessor left and nobody took."""
        while self._left:
            what, fd = self._left.popitem()
            os.close(fd)
            self.drop(what)


def no_store(vm: str = "vm") -> VmStore:
    """Return a part of a store that keeps nothing."""
    return VmStore(NoStore(), vm, {})

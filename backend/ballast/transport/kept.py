"""The descriptors of one session in the store: there before they count, gone after they counted."""

from __future__ import annotations

from ballast.streams.fdstore import VmStore
from ballast_protocol.errors import StateError


class KeptFds:
    """Stores descriptors at once, and lets them go only when a state without them is saved.

    So whatever state a successor finds, the descriptors that it speaks of are there. Those of
    which it does not speak are left over from a change that was not saved.
    """

    def __init__(self, store: VmStore) -> None:
        """Begin with none."""
        self._store = store
        self._held: set[str] = set()
        self._unwanted: set[str] = set()

    def put(self, what: str, fd: int) -> None:
        """Store a duplicate of a descriptor, instead of an older one of that name."""
        self._store.put(what, fd)
        self._held.add(what)
        self._unwanted.discard(what)

    def drop(self, what: str) -> None:
        """Let a descriptor go at the next `settle`."""
        if what in self._held:
            self._unwanted.add(what)

    def settle(self) -> None:
        """Let go of what is not wanted: the state that is saved does not speak of it any more."""
        if not self._unwanted:
            return
        for what in self._unwanted:
            self._store.drop(what)
        self._held -= self._unwanted
        self._unwanted.clear()

    def take(self, what: str) -> int:
        """Return what a predecessor left, which is the caller's then.

        Raises:
            StateError: It is not there, though the state speaks of it.
        """
        fd = self._store.take(what)
        if fd is None:
            raise StateError(f"a descriptor of the saved state is missing: {what}")
        self._held.add(what)
        return fd

    def close(self) -> None:
        """Let go of all of them: there is nothing left to go on with."""
        self._unwanted |= self._held
        self.settle()

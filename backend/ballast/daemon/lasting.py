"""What of a device lasts longer than the process that serves it: its books and its session."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from ballast.state.bitmap import SharedChunks
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast_protocol.errors import StateError

log = logging.getLogger(__name__)


class Lasting:
    """Memory files that the store holds for a successor, or that a predecessor has left there.

    Attributes:
        state: Records and cells, of which the session has some too.
        chunks: The ledger's bitmap.
        has_connection: Whether a predecessor has left a connection, so that its VM may live on.
    """

    def __init__(self, store: VmStore) -> None:
        """Take over what was left, or make it.

        Raises:
            StateError: It cannot be used, and a VM depends on it.
        """
        self._store = store
        self.has_connection = "connection" in store.left
        self.state: StateFile = self._open("state", StateFile.open) or StateFile.create()
        try:
            self.chunks: SharedChunks = self._open("ledger", SharedChunks) or SharedChunks()
        except BaseException:
            self.state.close()
            raise
        store.put("state", self.state.fd)
        store.put("ledger", self.chunks.fd)
        if not self.has_connection:
            self.chunks.clear()
            self.state.cells[:] = memoryview(bytes(self.state.cells.nbytes)).cast("I")

    def _open(self, what: str, make: Any) -> Any:
        """Return what was left, or None if nothing was, or nothing that matters any more."""
        fd = self._store.take(what)
        if fd is None:
            return None
        try:
            return make(fd)
        except StateError as error:
            os.close(fd)
            if self.has_connection:
                raise
            log.warning("what an earlier process left is not used: %s", error)
            return None

    def close(self) -> None:
        """Forget everything: the VM is not served any more."""
        self.state.close()
        self.chunks.close()
        self._store.drop("state")
        self._store.drop("ledger")


def check(left: Mapping[str, int]) -> None:
    """See whether everything that predecessors left of VMs in use can be used.

    Args:
        left: Descriptors by name, which stay the caller's.

    Raises:
        StateError: Something cannot.
    """
    for name, fd in left.items():
        vm, _, what = name.rpartition("/")
        if what in ("state", "ledger") and f"{vm}/connection" in left:
            copy = os.dup(fd)
            try:
                (StateFile.open(copy) if what == "state" else SharedChunks(copy)).close()
            except StateError:
                os.close(copy)
                raise

"""What of a device lasts longer than the process that serves it: its books and its session."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ballast.state.bitmap import SharedChunks
from ballast.state.document import adapter_of
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.transport.records import SessionRecords
from ballast.transport.vfio_user import saved as vfio_user
from ballast.transport.vhost_user import saved as vhost_user
from ballast_protocol.errors import StateError

log = logging.getLogger(__name__)

LOOKS = 5
LOOK_SECONDS = 0.02

_SESSIONS: dict[str, Any] = {
    "vhost-user": vhost_user.SavedSession,
    "vfio-user": vfio_user.SavedSession,
}
"""What sessions leave, by the name of the record."""

Opened = TypeVar("Opened", SharedChunks, StateFile)


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


def warm_up() -> None:
    """Do beforehand what takes time, for a process that is to take over at once when it has to."""
    for kind in _SESSIONS.values():
        adapter_of(kind)


def check(left: Mapping[str, int]) -> None:
    """See whether everything that predecessors left of VMs in use can be used.

    Args:
        left: Descriptors by name, which stay the caller's.

    Raises:
        StateError: Something cannot.
    """
    for name in left:
        vm, _, what = name.rpartition("/")
        if what == "connection":
            _check_patiently(left, vm)


def _check_patiently(left: Mapping[str, int], vm: str) -> None:
    """Look again at what seems damaged: whoever serves the VM writes to it meanwhile."""
    for _ in range(LOOKS):
        try:
            _check_vm(left, vm)
        except StateError:
            time.sleep(LOOK_SECONDS)
        else:
            return
    _check_vm(left, vm)


def _check_vm(left: Mapping[str, int], vm: str) -> None:
    with contextlib.ExitStack() as stack:
        if (fd := left.get(f"{vm}/ledger")) is not None:
            stack.enter_context(contextlib.closing(_opened(SharedChunks, fd)))
        if (fd := left.get(f"{vm}/state")) is not None:
            state = stack.enter_context(contextlib.closing(_opened(StateFile.open, fd)))
            connection = os.dup(left[f"{vm}/connection"])
            sock = stack.enter_context(socket.socket(fileno=connection))
            for name, kind in _SESSIONS.items():
                SessionRecords(state, sock, name, kind).load()


def _opened(make: Callable[[int], Opened], fd: int) -> Opened:
    copy = os.dup(fd)
    try:
        return make(copy)
    except StateError:
        os.close(copy)
        raise

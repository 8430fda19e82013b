"""What the keeper does itself: hold, accept, hand over. Who gets it is decided elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable

from ballast.keeper.logs import say
from ballast.keeper.loop import HANG_UP, READ, Loop, close_quietly
from ballast.keeper.messages import MAX_FDS, Message, encode
from ballast.keeper.vault import ALIVE, CONNECTION, LASTING, LISTENER, Vault, VaultFullError
from ballast.keeper.worker import Worker
from ballast.streams.fdstore import check_name
from ballast_protocol.errors import InternalError

COUNTER_BYTES = 8
"""What an eventfd is read in."""

ACCEPT_PAUSE_SECONDS = 1.0
"""How long to leave connections waiting when there is no descriptor left for them."""


class Keeper:
    """Holds the descriptors, and serves the one worker that they belong to at present.

    Attributes:
        loop: The event loop.
        vault: What is held.
        active: The worker that serves, or is about to; None while there is none.
    """

    def __init__(self, loop: Loop, vault: Vault) -> None:
        self.loop = loop
        self.vault = vault
        self.active: Worker | None = None
        self._is_pausing = False

    # From the worker -------------------------------------------------------------------------

    def heard(self, worker: Worker, message: Message, fds: list[int]) -> bool:
        """Do what a message asks of the store; return whether that was all of it."""
        name = message.get("FDNAME", "")
        is_store, is_removal = "FDSTORE" in message, "FDSTOREREMOVE" in message
        if worker is self.active and _is_name(name):
            if is_store and len(fds) == 1:
                self.put(name, fds.pop())
            elif is_removal:
                self.drop(name)
        for fd in fds:
            close_quietly(fd)
        if "STATUS" in message:
            worker.status = message["STATUS"]
        return is_store or is_removal

    def put(self, name: str, fd: int) -> None:
        """Hold a descriptor instead of an older one of that name."""
        try:
            old = self.vault.put(name, fd)
        except VaultFullError as error:
            say(f"{name} cannot be held, and would be lost with the worker: {error}")
            close_quietly(fd)
            if self.active is not None:
                self.active.send(encode(REJECTED=name))
            return
        self._forget(old)
        if name.endswith(LISTENER):
            os.set_blocking(fd, False)
        self._watch_listeners(name)

    def drop(self, name: str) -> None:
        """Let a descriptor go."""
        self._forget(self.vault.take(name))
        self._watch_listeners(name)

    def _forget(self, fd: int | None) -> None:
        if fd is not None:
            self.loop.forget(fd)
            close_quietly(fd)

    # To the worker ---------------------------------------------------------------------------

    def show(self, worker: Worker) -> None:
        """Send duplicates of everything held."""
        names = self.vault.names()
        for start in range(0, len(names), MAX_FDS):
            batch = names[start : start + MAX_FDS]
            worker.send(encode(FDNAMES=":".join(batch)), [self.vault[name] for name in batch])

    def hand_over(self, worker: Worker, go: bytes) -> None:
        """Make a worker the one that everything belongs to."""
        self.active = worker
        # Its own sign of life it brings with it, if it knows how.
        self.drop(ALIVE)
        for _, fd in self.vault.named(CONNECTION):
            self.loop.forget(fd)
        self.show(worker)
        worker.send(go)

    def lost(self) -> None:
        """The active worker is gone. Until the next one comes, notice which QEMUs leave."""
        self.active = None
        for name, fd in self.vault.named(CONNECTION):
            self.loop.watch(fd, HANG_UP, self._let_go_of(name))

    def _let_go_of(self, connection: str) -> Callable[[int], None]:
        """Return what lets a VM's memory and rings go; the rest waits for its next QEMU."""
        vm = connection.removesuffix(CONNECTION)

        def hung_up(_: int) -> None:
            say(f"{vm}: QEMU has gone while no worker served it")
            for name in self.vault.names():
                if name.startswith(f"{vm}/") and not name.endswith(LASTING):
                    self.drop(name)

        return hung_up

    def sees_life(self) -> bool:
        """Return whether the worker has shown that it turns since the last call, if it ever does.

        To read costs no waiting, whatever it is that was left under that name.
        """
        if ALIVE not in self.vault:
            return True
        fd = self.vault[ALIVE]
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(0):
            return False
        with contextlib.suppress(OSError):
            os.read(fd, COUNTER_BYTES)
        return True

    # From QEMU -------------------------------------------------------------------------------

    def _watch_listeners(self, changed: str = LISTENER) -> None:
        """Accept where a VM has no connection; a worker that has one answers others itself."""
        if not changed.endswith((LISTENER, CONNECTION)):
            return
        for name, fd in self.vault.named(LISTENER):
            is_free = name.removesuffix(LISTENER) + CONNECTION not in self.vault
            if is_free and not self._is_pausing:
                if not self.loop.is_watched(fd):
                    self.loop.watch(fd, READ, self._accept(name))
            else:
                self.loop.forget(fd)

    def _accept(self, listener: str) -> Callable[[int], None]:
        name = listener.removesuffix(LISTENER) + CONNECTION

        def accept(_: int) -> None:
            with socket.socket(fileno=os.dup(self.vault[listener])) as sock:
                try:
                    connection, _ = sock.accept()
                except OSError as error:
                    self._pause_unless_harmless(error)
                    return
            fd = connection.detach()
            self.put(name, fd)
            if self.active is not None and name in self.vault:
                self.active.send(encode(CONNECTION=1, FDNAME=name), [fd])

        return accept

    def _pause_unless_harmless(self, error: OSError) -> None:
        if error.errno in (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED):
            return
        say(f"a connection cannot be accepted: {error.strerror}")
        self._is_pausing = True
        self._watch_listeners()
        self.loop.later(ACCEPT_PAUSE_SECONDS, self._resume_accepting)

    def _resume_accepting(self) -> None:
        self._is_pausing = False
        self._watch_listeners()

    def connected_vms(self) -> list[str]:
        """Return the VMs whose QEMU is connected."""
        return [name.removesuffix(CONNECTION) for name, _ in self.vault.named(CONNECTION)]


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except InternalError:
        return False

"""Listens for the VMM and serves one connection at a time; a balloon has one guest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ballast.streams.fdstore import VmStore, no_store
from ballast.streams.listening import kept_listener
from ballast.streams.unix import peer_pid
from ballast_protocol.errors import OperatorError, StateError

log = logging.getLogger(__name__)

ACCEPT_PAUSE_SECONDS = 1.0
"""How long to leave connections waiting when there is no descriptor left for them."""


class Session(Protocol):
    """One connection of a VMM."""

    @property
    def pid(self) -> int | None:
        """The VMM's process, if known."""

    @property
    def problem(self) -> str:
        """What keeps the balloon from working, for the operator; empty if nothing does."""

    def notify_config(self) -> None:
        """Have the guest read the config space again, as soon as that is safe."""

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""

    def refresh(self) -> None:
        """Take what the guest has said since we last looked, where nobody tells us."""

    def status(self) -> dict[str, object]:
        """Return what operators may want to know of the connection."""

    def close(self) -> None:
        """Let go of everything."""


class DeviceServer:
    """A balloon behind a socket, whatever is spoken there; implements `transport.base.Transport`.

    Attributes:
        protocol: The name of what is spoken.
        session: The connection being served, if there is one.
    """

    protocol = ""

    def __init__(
        self,
        *,
        path: Path | None = None,
        fd: int | None = None,
        changed: Callable[[], None] = lambda: None,
        store: VmStore | None = None,
    ) -> None:
        """Serve at `path`, or over a socket that was inherited as `fd`.

        Args:
            path: Where to listen.
            fd: A listening or a connected socket, QEMU's `--fd` convention for back-ends.
            changed: Called when a VMM has come or gone.
            store: Where descriptors are kept for a successor, and what a predecessor left there;
                what it left comes before `path` and `fd`.
        """
        self._store = store or no_store()
        self._path = path
        self._fd = fd
        self._changed = changed
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.session: Session | None = None
        self._refused = 0

    @abstractmethod
    def _open(self, sock: socket.socket, ended: Callable[[str], None]) -> Session:
        """Make the session that serves a connected socket."""

    async def start(self) -> None:
        """Listen, or take over the inherited socket.

        Raises:
            OperatorError: The path or the descriptor cannot be used.
        """
        connection = self._store.take("connection")
        if self._path is not None:
            self._listen_on(kept_listener(self._store, "listener", self._path))
        elif (listener := self._store.take("listener")) is not None:
            self._listen_on(socket.socket(fileno=listener))
        elif self._fd is not None and connection is None:
            self._inherit(self._fd)
        if connection is not None:
            self._serve(socket.socket(fileno=connection))

    def offer(self, sock: socket.socket) -> None:
        """Serve a connection that was accepted, and stored, by the owner of the store."""
        if self.session is None:
            self._serve(sock)
        else:
            self._refuse(sock)

    def _inherit(self, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise OperatorError(
                f"file descriptor {fd} is not a socket: {error.strerror}",
                hint="--fd takes a Unix socket, listening or connected, open in this process.",
            ) from error
        if listening:
            self._listen_on(sock)
        else:
            self._store.put("connection", sock.fileno())
            self._serve(sock)

    def _listen_on(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._store.put("listener", listener.fileno())
        self._watch()

    def _watch(self) -> None:
        """Accept connections; where another process does that, only those to be refused."""
        if self._listener is None:
            return
        loop = asyncio.get_running_loop()
        if self._store.accepts and self.session is None:
            loop.remove_reader(self._listener)
        else:
            loop.add_reader(self._listener, self._acceptable)

    def _acceptable(self) -> None:
        """Take a connection; a second one beside a living one is refused."""
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(ACCEPT_PAUSE_SECONDS, self._watch)
            return
        if self.session is not None:
            self._refused += 1
            log.warning(
                "refused process %s: process %s is connected", peer_pid(sock), self.session.pid
            )
            self._refuse(sock)
            return
        self._store.put("connection", sock.fileno())
        self._serve(sock)

    def _refuse(self, sock: socket.socket) -> None:
        """Turn away a VMM that comes while another one is served."""
        sock.close()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self.session = self._open(sock, self._ended)
        except OSError as error:
            log.error("process %s cannot be served: %s", peer_pid(sock), error)
            sock.close()
            self._store.drop("connection")
            return
        except StateError:
            sock.close()
            raise
        log.info("process %s connected", self.session.pid)
        self._watch()
        self._changed()

    def _ended(self, reason: str) -> None:
        pid = self.session.pid if self.session else None
        self.session = None
        if reason:
            log.error("the connection of process %s ended: %s", pid, reason)
        else:
            log.info("process %s disconnected", pid)
        self._watch()
        self._store.drop("connection")
        self._changed()

    def notify_config(self) -> None:
        """Have the guest read the config space again, as soon as that is safe.

        Without a connection nothing is due: a driver reads the config space when it starts.
        """
        if self.session is not None:
            self.session.notify_config()

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        return self.session is not None and self.session.request_statistics()

    def refresh(self) -> None:
        """Take what the guest has said since we last looked, where nobody tells us."""
        if self.session is not None:
            self.session.refresh()

    def status(self) -> dict[str, object]:
        """Return what operators may want to know, ready for JSON."""
        return {
            "transport": self.protocol,
            "socket": str(self._path) if self._path else None,
            "connection": self.session.status() if self.session else None,
            "refused-connections": self._refused,
        }

    async def close(self) -> None:
        """Let go of the VMM, its memory and the socket."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._store.drop("listener")
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()
        if self.session is not None:
            self.session.close()
            self.session = None
            self._store.drop("connection")

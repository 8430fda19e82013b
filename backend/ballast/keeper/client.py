"""The worker's end of the channel: a store for descriptors, and orders."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ballast.keeper.channel import ChannelClosedError, receive, send
from ballast.keeper.messages import Message, encode
from ballast.keeper.worker import peer_pid
from ballast.streams.fdstore import check_name
from ballast_protocol.errors import OperatorError

RETRY_SECONDS = 0.001
PATIENCE_SECONDS = 10.0
"""How long to try when too many descriptors of this user are under way."""


@dataclass(frozen=True)
class Takeover:
    """Why a worker begins to serve, and what was before it.

    Attributes:
        kind: `start`, `restart`, `upgrade`, `upgrade-failed` or `adopt`.
        reason: How the predecessor ended, in words.
        since_ns: When that was noticed, on the monotonic clock; None if nobody waits.
        restarts: How often a worker was replaced because it was gone.
        upgrades: How often one was replaced on purpose.
        attempts: How often an upgrade was asked for.
        upgrade_error: Why the last upgrade failed; empty if it did not.
    """

    kind: str = "start"
    reason: str = ""
    since_ns: int | None = None
    restarts: int = 0
    upgrades: int = 0
    attempts: int = 0
    upgrade_error: str = ""

    @classmethod
    def parse(cls, message: Message) -> Takeover:
        """Read a `GO`."""
        since = message.get("SINCE", "")
        return cls(
            kind=message.get("KIND", "start"),
            reason=message.get("REASON", ""),
            since_ns=int(since) if since.isdigit() else None,
            restarts=_number(message, "RESTARTS"),
            upgrades=_number(message, "UPGRADES"),
            attempts=_number(message, "ATTEMPTS"),
            upgrade_error=message.get("UPGRADE_ERROR", ""),
        )


class DismissedError(Exception):
    """The worker is not needed: it was told to leave before it served, or its keeper has ended."""


class KeeperStore:
    """Leaves descriptors with a keeper; implements `streams.fdstore.FdStore`.

    Sending waits while the keeper has too much to read: it never waits itself. Should it be gone,
    everything is remembered here for the next one.

    Attributes:
        accepts: True: the keeper accepts connections.
        is_lost: Whether the keeper is gone.
        keeper_pid: Its process.
        takeover: Why this process serves, once it does.
    """

    accepts = True

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected channel."""
        sock.setblocking(True)
        self._sock = sock
        self._left: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self.is_lost = False
        self.takeover = Takeover()
        self.keeper_pid = peer_pid(sock)

    def fileno(self) -> int:
        """Return the channel, to be watched for messages."""
        return self._sock.fileno()

    # Before serving --------------------------------------------------------------------------

    def wait(self, check: Callable[[dict[str, int]], None]) -> Takeover:
        """Wait for the order to serve.

        Args:
            check: Looks at what would be taken over, in a successor; what it raises is reported.

        Raises:
            DismissedError: This worker is not needed.
            OperatorError: The keeper has another worker already.
        """
        self._send(encode(LOADED=1))
        while True:
            try:
                received = receive(self._sock, wait=True)
            except ChannelClosedError as error:
                raise DismissedError from error
            if received is None:
                continue
            message, fds = received
            self._left.update(zip(_names(message), fds, strict=False))
            if "GO" in message:
                self.takeover = Takeover.parse(message)
                return self.takeover
            if "CHECK" in message:
                self._check(check)
            elif "REFUSED" in message:
                raise OperatorError(
                    f"the keeper has no use for another worker: {message['REFUSED']}",
                    hint="Stop that one first: its successor gets everything from the keeper.",
                )
            elif "STOP" in message or "LEAVE" in message:
                raise DismissedError

    def _check(self, check: Callable[[dict[str, int]], None]) -> None:
        left, self._left = self._left, {}
        try:
            check(left)
        finally:
            for fd in left.values():
                os.close(fd)
        self._send(encode(STANDBY=1))

    # While serving ---------------------------------------------------------------------------

    def take_all(self) -> dict[str, int]:
        """Return what the predecessor left, by name; each descriptor is the caller's."""
        left, self._left = self._left, {}
        self._held.update((name, os.dup(fd)) for name, fd in left.items())
        return left

    def put(self, name: str, fd: int) -> None:
        """Leave a duplicate of a descriptor, instead of an older one of that name.

        Raises:
            InternalError: The name cannot be one.
        """
        check_name(name)
        duplicate = os.dup(fd)
        self._remember(name, duplicate)
        self._send(encode(FDSTORE=1, FDNAME=name), duplicate)

    def drop(self, name: str) -> None:
        """Let a descriptor go; one that is not there is none to complain of."""
        if name in self._held:
            self._remember(name, None)
            self._send(encode(FDSTOREREMOVE=1, FDNAME=name))

    def _remember(self, name: str, fd: int | None) -> None:
        old = self._held.pop(name, None)
        if old is not None:
            os.close(old)
        if fd is not None:
            self._held[name] = fd

    def ready(self) -> None:
        """Tell that the worker serves."""
        self._send(encode(READY=1))

    def complain(self, why: str) -> None:
        """Tell why this process is about to end."""
        self._send(encode(STATUS=why))

    def ask_for_upgrade(self) -> None:
        """Have this process replaced by a new version."""
        self._send(encode(RELOAD=1))

    def read(self) -> tuple[Message, list[int]] | None:
        """Return the keeper's next message and its descriptors; None if there is none now.

        What has come with a message is noted as held by the keeper.
        """
        if self.is_lost:
            return None
        try:
            received = receive(self._sock)
        except ChannelClosedError:
            self.is_lost = True
            return None
        if received is not None:
            self._note(*received)
        return received

    def _note(self, message: Message, fds: list[int]) -> None:
        if "CONNECTION" in message and fds:
            self._remember(message.get("FDNAME", ""), os.dup(fds[0]))
        elif "FAILED" in message:
            attempts = _number(message, "ATTEMPTS")
            error = message["FAILED"]
            self.takeover = replace(self.takeover, attempts=attempts, upgrade_error=error)

    def move_to(self, sock: socket.socket, pid: int) -> None:
        """Go on with another keeper, and leave everything there that the old one had.

        Args:
            sock: The channel.
            pid: The keeper's process.
        """
        self._sock.close()
        sock.setblocking(True)
        self._sock, self.is_lost, self.keeper_pid = sock, False, pid
        past = self.takeover
        counts = {"RESTARTS": past.restarts, "UPGRADES": past.upgrades, "ATTEMPTS": past.attempts}
        self._send(encode(ATTACH="serving", **counts))
        for name, fd in self._held.items():
            self._send(encode(FDSTORE=1, FDNAME=name), fd)
        self.ready()

    def _send(self, message: bytes, *fds: int) -> None:
        """Send; a keeper that is gone is noticed by whoever reads."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.is_lost:
            try:
                send(self._sock, message, fds)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                    return
                time.sleep(RETRY_SECONDS)
            else:
                return

    def close(self) -> None:
        """Hang up, and forget everything."""
        self._sock.close()
        for name in list(self._held):
            self._remember(name, None)
        for fd in self._left.values():
            os.close(fd)
        self._left = {}


def connect(path: str, *, serves_already: bool = False) -> socket.socket:
    """Return a channel to a keeper that listens at a path.

    Raises:
        OSError: None does.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.connect(path)
        if not serves_already:
            sock.send(encode(ATTACH="new"))
        stack.pop_all()
    return sock


def _names(message: Message) -> list[str]:
    return message["FDNAMES"].split(":") if "FDNAMES" in message else []


def _number(message: Message, key: str) -> int:
    text = message.get(key, "")
    return int(text) if text.isdigit() else 0

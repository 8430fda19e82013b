"""A worker as the keeper sees it: a channel, and a process whose end it wants to hear of."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence

from ballast.keeper.channel import ChannelClosedError, Outbox, receive
from ballast.keeper.loop import READ, WRITE, Loop, close_quietly
from ballast.keeper.messages import Message

MESSAGES_PER_TURN = 256

GRACE_SECONDS = 2.0
"""How long a process may take to end once it has closed its channel."""

_UCRED = struct.Struct("iII")

Heard = Callable[["Worker", Message, list[int]], None]
Ended = Callable[["Worker", str], None]


class Worker:
    """One process at the other end of a channel.

    Attributes:
        pid: The process.
        status: What it said of its own failure; empty if nothing.
        exit_status: What a child of ours ended with, if it ended by itself.
        is_loaded: Whether it has said that it has loaded its code.
        is_ready: Whether it has said that it serves.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        heard: Heard,
        ended: Ended,
        process: subprocess.Popen[bytes] | None = None,
        may_kill: bool = False,
    ) -> None:
        """Take over a connected channel.

        Args:
            loop: Where to listen.
            sock: The channel.
            heard: Called with each message; its descriptors are the callee's.
            ended: Called once when the process is gone and all its messages were heard, and told
                how it ended.
            process: The process, if it is a child of ours.
            may_kill: Whether it is ours to kill, though not a child.
        """
        self.pid = process.pid if process else peer_pid(sock)
        self.status = ""
        self.exit_status: int | None = None
        self.is_loaded = False
        self.is_ready = False
        self._loop = loop
        self._sock = sock
        self._heard = heard
        self._ended = ended
        self._process = process
        self._outbox = Outbox(sock)
        self._pidfd = os.pidfd_open(self.pid) if process or may_kill else -1
        loop.watch(sock.fileno(), READ, self._on_channel)
        if process:
            loop.watch(self._pidfd, READ, lambda _: self._reap())

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message with duplicates of descriptors; if the worker is gone nothing happens."""
        if self._sock.fileno() >= 0:
            self._outbox.send(message, fds)
            self._watch_channel()

    def kill(self) -> None:
        """End the process at once; its messages are still heard."""
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Have nothing to do with it any more; a waiting worker ends when its channel closes."""
        self._outbox.clear()
        if self._sock.fileno() >= 0:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
        if self._pidfd >= 0:
            self._loop.forget(self._pidfd)
            close_quietly(self._pidfd)
            self._pidfd = -1

    def _watch_channel(self) -> None:
        events = READ | (WRITE if self._outbox else 0)
        self._loop.watch(self._sock.fileno(), events, self._on_channel)

    def _on_channel(self, events: int) -> None:
        if events & WRITE:
            self._outbox.flush()
            self._watch_channel()
        if not self._read():
            self._loop.forget(self._sock.fileno())
            if self._process is None:
                self._finish("hung up")
            else:
                # It is ending, one thinks. If not, it may not go on beside its successor.
                self._loop.later(GRACE_SECONDS, self.kill)

    def _read(self) -> bool:
        """Hear a bounded number of messages; return whether more may come."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = receive(self._sock)
            except ChannelClosedError:
                return False
            if received is None:
                return True
            self._heard(self, *received)
            if self._sock.fileno() < 0:
                return True
        return True

    def _reap(self) -> None:
        """Hear the last words, which the process sent before it ended, and say how it ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        while self._sock.fileno() >= 0 and self._has_words():
            pass
        if code >= 0:
            self.exit_status = code
        self._finish(f"was killed by {_signal_name(-code)}" if code < 0 else f"ended ({code})")

    def _has_words(self) -> bool:
        try:
            received = receive(self._sock)
        except ChannelClosedError:
            return False
        if received is not None:
            self._heard(self, *received)
        return received is not None

    def _finish(self, how: str) -> None:
        self.close()
        self._ended(self, f"{how}: {self.status}" if self.status else how)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def peer_pid(sock: socket.socket) -> int:
    """Return the process that connected or made the other end; 0 if it is out of our sight."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, _, _ = _UCRED.unpack(raw)
    return int(pid)

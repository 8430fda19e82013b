"""The keeper's event loop: descriptors, timers and signals, and no callback that can end it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from ballast.keeper.logs import say

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
HANG_UP = select.EPOLLHUP
"""Reported always; to ask for it alone, watch for nothing else."""

_MAX_WAIT_SECONDS = 3600.0

Callback = Callable[[], None]
Watch = Callable[[int], None]
"""Told what happened."""


class Timer:
    """Something to be done later, unless cancelled."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Have it not done."""
        self.callback = None


class Loop:
    """Waits for what happens and calls whoever wants to know."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.watch(self._wake_reader.fileno(), READ, lambda _: self._take_signals())
        self._is_over = False
        self._status = 0

    def watch(self, fd: int, events: int, callback: Watch) -> None:
        """Call back with what happened on a descriptor, as long as it is so; may be changed."""
        if fd in self._watches:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watches[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop to watch a descriptor; to be called before it is closed."""
        if self._watches.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def is_watched(self, fd: int) -> bool:
        """Return whether a descriptor is being watched."""
        return fd in self._watches

    def later(self, seconds: float, callback: Callback) -> Timer:
        """Do something after a time."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def on_signal(self, number: signal.Signals, callback: Callback) -> None:
        """Call back when a signal comes."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)

    def end(self, status: int) -> None:
        """Have `run` return."""
        self._is_over, self._status = True, status

    def run(self) -> int:
        """Turn until `end`, and return the status given there."""
        while not self._is_over:
            self.turn()
        return self._status

    def turn(self) -> None:
        """Wait for something to happen and do what it asks for."""
        for fd, events in self._epoll.poll(self._patience()):
            watch = self._watches.get(fd)
            if watch is not None:
                _safely(partial(watch, events))
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                _safely(timer.callback)

    def _patience(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return _MAX_WAIT_SECONDS
        return min(max(0.0, self._timers[0][0] - time.monotonic()), _MAX_WAIT_SECONDS)

    def _take_signals(self) -> None:
        try:
            numbers = self._wake_reader.recv(64)
        except OSError:
            return
        for number in numbers:
            callback = self._signals.get(number)
            if callback is not None:
                _safely(callback)

    def close(self) -> None:
        """Give the signals back and close what the loop itself has open."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._wake_reader.close()
        self._wake_writer.close()
        self._epoll.close()


def _safely(callback: Callback) -> None:
    """Call; a bug of ours must not cost the descriptors that are held."""
    try:
        callback()
    except Exception as error:
        say(f"a bug of ours: {type(error).__name__}: {error}")


def close_quietly(fd: int) -> None:
    """Close a descriptor whatever the kernel says about it."""
    with contextlib.suppress(OSError):
        os.close(fd)

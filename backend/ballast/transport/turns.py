"""Shares the thread among all rings of all VMs of a process, and leaves some of it to the rest.

Rings have a budget: of each period a half. Within it a ring is served at once, which is the
shortest way from a kick to an answer. Once it is spent, rings wait in line for the next turns of
the event loop, each of which has a budget of its own, and between two turns everybody else is
heard: config reads of guests, operators and agents. So what an operator waits for does not depend
on how many guests are busy.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

BUDGET_SECONDS = 0.001
"""For rings, in each period and each turn. One slice is always served, however long it takes."""

PERIOD_SECONDS = 2 * BUDGET_SECONDS


class Turn:
    """Some work that gets a place in line, or is done at once, as often as it is due.

    Attributes:
        work: What is to be done.
        is_waiting: It has a place in line.
    """

    __slots__ = ("is_waiting", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.is_waiting = False

    def cancel(self) -> None:
        """Do not do the work after all."""
        self.is_waiting = False


class Turns:
    """The line of one event loop."""

    def __init__(self) -> None:
        self._line: deque[Turn] = deque()
        self._began = self._spent_seconds = 0.0
        self._is_next_due = False

    def take(self, turn: Turn) -> None:
        """Do some work now if the budget allows, otherwise in line."""
        now = time.monotonic()
        if now - self._began >= PERIOD_SECONDS:
            self._began, self._spent_seconds = now, 0.0
        if self._line or self._spent_seconds >= BUDGET_SECONDS:
            self.queue(turn)
        else:
            turn.work()
            self._spent_seconds += time.monotonic() - now

    def queue(self, turn: Turn) -> None:
        """Do some work in a later turn: whose it is has just had one."""
        turn.is_waiting = True
        self._line.append(turn)
        self._look_next()

    def _look_next(self) -> None:
        """See to it that the line goes on in the next turn of the loop."""
        if not self._is_next_due:
            self._is_next_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn with those in line, as far as the budget goes."""
        self._is_next_due = False
        self._began, self._spent_seconds = time.monotonic(), 0.0
        while self._line and self._spent_seconds < BUDGET_SECONDS:
            turn = self._line.popleft()
            if turn.is_waiting:
                turn.is_waiting = False
                turn.work()
                self._spent_seconds = time.monotonic() - self._began
        if self._line:
            self._look_next()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def shared_turns() -> Turns:
    """Return the line that all rings share that are served by the running loop."""
    return _turns.setdefault(asyncio.get_running_loop(), Turns())

"""Shares the thread among all rings of all VMs of a process, and leaves some of it to the rest.

Each turn of the event loop has a budget of time for rings. Within it a ring is served at once,
which is the shortest way from a kick to an answer. Once it is spent, rings wait in line for the
next turns, and between two turns everybody else is heard: config reads of guests, operators and
agents. So what an operator waits for does not depend on how many guests are busy.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

BUDGET_SECONDS = 0.001
"""For rings, in each turn of the loop. One slice is always served, however long it takes."""


class Turn:
    """Some work that has a place in line, or is done at once; it can be called off."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    @property
    def is_waiting(self) -> bool:
        """Whether the work is still to be done."""
        return self._work is not None

    def cancel(self) -> None:
        """Do not do the work after all."""
        self._work = None

    def run(self) -> None:
        """Do it now, once."""
        work, self._work = self._work, None
        if work is not None:
            work()


class Turns:
    """The line of one event loop."""

    def __init__(self) -> None:
        self._line: deque[Turn] = deque()
        self._spent_seconds = 0.0
        self._is_counting = False

    def take(self, turn: Turn) -> None:
        """Do some work now if this turn's budget allows, otherwise in line."""
        if self._line or self._spent_seconds >= BUDGET_SECONDS:
            self._line.append(turn)
        else:
            self._run(turn)

    def queue(self, turn: Turn) -> None:
        """Do some work in a later turn: whose it is has just had one."""
        self._line.append(turn)
        self._count()

    def _run(self, turn: Turn) -> None:
        started = time.monotonic()
        turn.run()
        self._spent_seconds += time.monotonic() - started
        self._count()

    def _count(self) -> None:
        """See to it that the next turn of the loop begins with a new budget."""
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn: first those in line, as far as the budget goes."""
        self._is_counting = False
        self._spent_seconds = 0.0
        while self._line and self._spent_seconds < BUDGET_SECONDS:
            turn = self._line.popleft()
            if turn.is_waiting:
                self._run(turn)
        if self._line:
            self._count()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def shared_turns() -> Turns:
    """Return the line that all rings share that are served by the running loop."""
    return _turns.setdefault(asyncio.get_running_loop(), Turns())

"""How long steps are shown: a bar each on a terminal, a line each elsewhere, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[float], None]
"""Takes the part of a step that is done, from 0 to 1; never called for steps of unknown length."""


class Reporter(Protocol):
    """Shows the steps of something that takes longer than a person likes to wait in the dark."""

    def step(self, what: str) -> AbstractContextManager[Advance]:
        """Enclose one step, described by `what`."""
        ...


class SilentReporter:
    """Shows nothing."""

    @contextmanager
    def step(self, what: str) -> Iterator[Advance]:
        """Enclose a step that nobody watches."""
        yield _ignore


class ConsoleReporter:
    """Shows a bar per step on a terminal, and one plain line per step anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def step(self, what: str) -> Iterator[Advance]:
        """Enclose a step and show how far it is."""
        if not self._console.is_terminal:
            self._console.print(what, markup=False, highlight=False)
            yield _ignore
            return
        with self._bar() as bar:
            task = bar.add_task(what, total=None)
            yield lambda done: bar.update(task, total=1.0, completed=done)
            bar.update(task, total=1.0, completed=1.0)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )


def _ignore(_done: float) -> None:
    pass

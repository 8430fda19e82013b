"""Work that takes the kernel long, away from the loop that has to watch the guest's memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

Job = Callable[[], None]
Done = Callable[[float], None]
"""Takes how many seconds the job took."""


class Background(Protocol):
    """Does jobs somewhere else."""

    def submit(self, job: Job, done: Done) -> None:
        """Do `job` in another thread, then `done` in the loop; both must not raise."""


class Worker:
    """One thread that does jobs in order; it starts with the first."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Have nothing to do.

        Args:
            wake: Makes the loop call `collect`; called in the thread.
        """
        self._wake = wake
        self._jobs: queue.Queue[tuple[Job, Done]] = queue.Queue()
        self._done: queue.SimpleQueue[tuple[Done, float]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, done: Done) -> None:
        """See `Background.submit`."""
        self._jobs.put((job, done))
        if self._thread is None:
            # A daemon: the kernel's compaction cannot be interrupted, and nobody waits for it.
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def collect(self) -> bool:
        """Do what is to be done after jobs that have ended; tell whether there was anything."""
        any_done = False
        while True:
            try:
                done, seconds = self._done.get_nowait()
            except queue.Empty:
                return any_done
            done(seconds)
            any_done = True

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            began = time.monotonic()
            job()
            self._done.put((done, time.monotonic() - began))
            self._wake()

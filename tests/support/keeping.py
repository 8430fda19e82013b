"""A keeper in this process, whose loop the test turns, and its workers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ballast.keeper.keeper import Keeper
from ballast.keeper.loop import Loop
from ballast.keeper.supervisor import Supervisor
from ballast.keeper.vault import Vault
from ballast.keeper.worker import Worker

PATIENCE_SECONDS = 30.0
TICK_SECONDS = 0.01

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def turn_until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS

    def tick() -> None:
        loop.later(TICK_SECONDS, tick)

    tick()
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        loop.turn()


@contextmanager
def keeping(limit: int = 64) -> Iterator[Keeper]:
    """Make a keeper for as long as the context lasts."""
    loop, vault = Loop(), Vault(limit)
    try:
        yield Keeper(loop, vault)
    finally:
        vault.close()
        loop.close()


class Supervised:
    """A keeper that starts fake workers.

    Attributes:
        keeper: The keeper.
        supervisor: Its policy.
    """

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self._file = directory / "behaviour"
        self.install("v1")
        self.keeper = keeper
        command = [sys.executable, str(FAKE_WORKER), str(self._file)]
        self.supervisor = Supervisor(keeper, command)
        self.status: int | None = None
        self._launched: list[Worker] = []
        launch = self.supervisor._launch

        def noted() -> Worker | None:
            worker = launch()
            self._launched += [worker] if worker else []
            return worker

        self.supervisor._launch = noted  # type: ignore[method-assign]
        keeper.loop.end = self._end  # type: ignore[method-assign]

    def _end(self, status: int) -> None:
        self.status = status

    def install(self, behaviour: str) -> None:
        """Have processes that start from now on behave so."""
        self._file.write_text(behaviour)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until something is true."""
        turn_until(self.keeper.loop, condition)

    @property
    def takeover(self) -> list[str]:
        """What the worker was told: its code, the kind and the reason, and what was there."""
        return self.text("vm/takeover").split("|")

    def text(self, name: str) -> str:
        """Return a text that a worker has left."""
        if name not in self.keeper.vault:
            return ""
        return os.pread(self.keeper.vault[name], 1000, 0).decode()

    @property
    def pid(self) -> int:
        """The worker's process; 0 while none serves."""
        active = self.keeper.active
        return active.pid if active is not None and active.is_ready else 0

    def start(self) -> None:
        """Start, and wait until a worker serves."""
        self.supervisor._replace("start", "")
        self.until(lambda: bool(self.pid))

    def until_spare(self) -> None:
        """Wait until a spare has loaded its code."""
        self.until(lambda: self.spare is not None and self.spare.is_loaded)

    @property
    def spare(self) -> Worker | None:
        """The spare, if there is one."""
        return self.supervisor._spare

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill the worker and wait for another; return its process."""
        old = self.pid
        os.kill(old, number)
        self.until(lambda: self.pid not in (0, old))
        return self.pid

    def close(self) -> None:
        """End all processes."""
        for worker in self._launched:
            process = worker._process
            assert process is not None
            process.kill()
            process.wait()
            worker.close()


@contextmanager
def supervised(directory: Path) -> Iterator[Supervised]:
    """Make a keeper that starts fake workers, and end all of them."""
    with keeping() as keeper:
        it = Supervised(keeper, directory)
        try:
            yield it
        finally:
            it.close()


def connected(path: Path) -> socket.socket:
    """Return a connection to a path, as QEMU makes it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock

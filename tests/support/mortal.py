"""A worker that is killed at a given line of its code, and succeeded by another: for real.

Each worker is a forked process that counts the lines of Ballast that it executes and sends itself
SIGKILL at one of them. What it wants to survive goes to the test, which plays the keeper: it has
the descriptors, and forks a successor as soon as the worker is dead. QEMU is played in the test's
own process, and notices nothing but that things take longer.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import ballast
from ballast.balloon.ledger import Ledger
from ballast.state.bitmap import SharedChunks
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.streams.unix import listen

NEVER = 0
_MAX_NAME = 64
_LINES, _KILL_AT, _READY, _TARGET, _COMMAND = range(5)
_PLACE = str(Path(ballast.__file__).parent)
_PROTOCOL = str(Path(_PLACE).parents[1] / "protocol")

Serve = Callable[[VmStore, "Orders"], Awaitable[None]]
"""What a worker does: serve until it is cancelled."""


class MortalityError(AssertionError):
    """A worker ended in another way than it was to."""


class Orders:
    """What the test wants of the worker, in memory that both see.

    Attributes:
        words: The lines executed, the line to die at, whether the worker is ready, the target in
            pages.
    """

    def __init__(self) -> None:
        self._mapping = mmap.mmap(-1, mmap.PAGESIZE)
        self.words = memoryview(self._mapping).cast("Q")

    @property
    def target_pages(self) -> int:
        """How many pages the guest is to give up."""
        return int(self.words[_TARGET])

    def ready(self) -> None:
        """The worker serves."""
        self.words[_READY] += 1


class _StoreClient:
    """The worker's end of the store: what it puts is the test's as soon as it was sent."""

    accepts = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def put(self, name: str, fd: int) -> None:
        socket.send_fds(self._sock, [b"+" + name.encode()], [fd])

    def drop(self, name: str) -> None:
        self._sock.send(b"-" + name.encode())

    def take_all(self) -> dict[str, int]:
        return {}


@dataclass
class Mortal:
    """The workers of one VM, one after the other.

    Attributes:
        serve: What each of them does.
        choose_life: Returns how many lines each of them may execute; `NEVER` for all it wants.
        deaths: How many were killed.
    """

    serve: Serve
    choose_life: Callable[[], int] = lambda: NEVER
    deaths: int = 0
    held: dict[str, int] = field(default_factory=dict)
    orders: Orders = field(default_factory=Orders)
    failure: BaseException | None = None
    _pid: int = 0
    _pidfd: int = -1
    _store: socket.socket | None = None

    # The store -------------------------------------------------------------------------------

    def put(self, name: str, fd: int) -> None:
        """Store a duplicate."""
        old = self.held.pop(name, None)
        if old is not None:
            os.close(old)
        self.held[name] = os.dup(fd)

    def connect(self, connection: socket.socket) -> None:
        """Have workers serve a connection from now on."""
        self.put("vm/connection", connection.fileno())
        connection.close()
        self.begin()

    def _take_messages(self) -> None:
        """Take what the worker has stored and dropped."""
        assert self._store is not None
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._store, _MAX_NAME, 1)
            except BlockingIOError:
                return
            if not message:
                return
            name = message[1:].decode()
            if message.startswith(b"+"):
                self.put(name, fds[0])
                os.close(fds[0])
            elif (old := self.held.pop(name, None)) is not None:
                os.close(old)

    # Life and death --------------------------------------------------------------------------

    def begin(self) -> None:
        """Fork a worker."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        words = self.orders.words
        words[_LINES], words[_KILL_AT] = 0, self.choose_life()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._live(theirs)
        theirs.close()
        self._pid, self._pidfd, self._store = pid, os.pidfd_open(pid), ours
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._take_messages)
        loop.add_reader(self._pidfd, self._died)

    def _live(self, store: socket.socket) -> NoReturn:
        """Be the worker."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            asyncio._set_running_loop(None)
            asyncio.set_event_loop(None)
            left = {name: os.dup(fd) for name, fd in self.held.items()}
            part = VmStore(_StoreClient(store), "vm", left)
            sys.settrace(_Reaper(self.orders.words).begin)
            asyncio.run(_serve_for_ever(self.serve, part, self.orders))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _died(self) -> None:
        loop = asyncio.get_running_loop()
        self._take_messages()
        assert self._store is not None
        loop.remove_reader(self._store)
        loop.remove_reader(self._pidfd)
        self._store.close()
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        self._pid, self._pidfd = 0, -1
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            self.failure = MortalityError(f"the worker ended by itself, with status {status}")
            return
        self.deaths += 1
        self.begin()

    def arm(self, lines: int) -> None:
        """Have the present worker die so many lines of its code from now."""
        words = self.orders.words
        words[_KILL_AT] = words[_LINES] + lines

    @property
    def lines(self) -> int:
        """How many lines the present worker has executed."""
        return int(self.orders.words[_LINES])

    def set_target(self, pages: int) -> None:
        """Have the guest asked for so many pages."""
        self.orders.words[_TARGET] = pages
        if self._pid:
            os.kill(self._pid, signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the present worker, wherever it is."""
        os.kill(self._pid, signal.SIGKILL)

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.failure is not None:
            raise self.failure

    def end(self) -> None:
        """Kill the last worker and forget everything."""
        loop = asyncio.get_running_loop()
        if self._pid:
            loop.remove_reader(self._pidfd)
            assert self._store is not None
            loop.remove_reader(self._store)
            with suppress(ProcessLookupError):
                self.kill()
            os.waitpid(self._pid, 0)
            os.close(self._pidfd)
            self._store.close()
        for fd in self.held.values():
            os.close(fd)
        self.held.clear()

    # What it has left ------------------------------------------------------------------------

    @property
    def ledger(self) -> set[int]:
        """The pages in the books."""
        chunks = SharedChunks(os.dup(self.held["vm/ledger"]))
        try:
            runs = list(Ledger(chunks).runs())
        finally:
            chunks.close()
        return {page for first, count in runs for page in range(first, first + count)}

    @property
    def actual_pages(self) -> int:
        """What the guest last said, as the worker has noted it."""
        file = StateFile.open(os.dup(self.held["vm/state"]))
        try:
            return file.cells[0]
        finally:
            file.close()


class _Reaper:
    """A trace function that counts the lines of Ballast, and kills at one of them."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._is_ours: dict[CodeType, bool] = {}

    def begin(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        """Look at a frame that begins."""
        code = frame.f_code
        is_ours = self._is_ours.get(code)
        if is_ours is None:
            is_ours = code.co_filename.startswith((_PLACE, _PROTOCOL))
            self._is_ours[code] = is_ours
        return self.line if is_ours else None

    def line(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        """Count a line."""
        if event == "line":
            words = self._words
            words[_LINES] += 1
            if words[_LINES] == words[_KILL_AT]:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.line


async def _serve_for_ever(serve: Serve, store: VmStore, orders: Orders) -> None:
    await serve(store, orders)
    orders.ready()
    await asyncio.Event().wait()


@asynccontextmanager
async def mortal(
    serve: Serve, choose_life: Callable[[], int] = lambda: NEVER
) -> AsyncIterator[tuple[Mortal, socket.socket]]:
    """Run a worker that has a connection, of which the test has the other end.

    Args:
        serve: What each worker does.
        choose_life: Returns how many lines each of them may execute; `NEVER` for all it wants.
    """
    ours, theirs = socket.socketpair()
    async with _living(Mortal(serve, choose_life)) as workers:
        workers.connect(theirs)
        yield workers, ours


@asynccontextmanager
async def mortal_at(
    path: Path, serve: Serve, choose_life: Callable[[], int] = lambda: NEVER
) -> AsyncIterator[Mortal]:
    """As `mortal`; the worker begins when somebody connects at a path."""
    async with _living(Mortal(serve, choose_life)) as workers:
        with listen(path) as listener:

            async def accept() -> None:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                workers.connect(connection)

            accepting = asyncio.create_task(accept())
            try:
                yield workers
            finally:
                accepting.cancel()


@asynccontextmanager
async def _living(workers: Mortal) -> AsyncIterator[Mortal]:
    # A worker that cannot listen yet inherits this, and looks at its orders when it can.
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield workers
        workers.check()
    finally:
        workers.end()
        signal.signal(signal.SIGUSR1, before)

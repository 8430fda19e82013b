"""QEMU's own QMP monitor, shared by everybody who needs it here.

A monitor of QEMU has one client at a time; whoever comes second waits for the first to leave. So
there is one connection for each VM, for as long as both live, and what our clients ask of QEMU goes
through it. Ids are ours there and theirs here; QEMU executes the commands of a connection in order,
as it does those of all its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from ballast.streams.fds import FdSet
from ballast.streams.unix import peer_pid
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import ErrorClass, RefusedError

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
"""Between two attempts to reach a QEMU that is not there."""

GREETING_SECONDS = 5.0
"""How long QEMU may take to greet. One that is busy with another client does not greet at all."""

MAX_IN_BAND = 7
"""Commands that QEMU has at once. It reads no further than 8, not even what is out of band."""

_CHANGES_RUN_STATE = frozenset(
    ("STOP", "RESUME", "SUSPEND", "SUSPEND_DISK", "WAKEUP", "GUEST_PANICKED", "SHUTDOWN", "RESET")
)


@dataclass(frozen=True)
class QemuVersion:
    """Who greeted.

    Attributes:
        version: QEMU's `VersionInfo`.
        has_out_of_band: Whether it executes commands out of band.
    """

    version: Mapping[str, Any]
    has_out_of_band: bool

    def __str__(self) -> str:
        numbers = self.version.get("qemu", {})
        return ".".join(str(numbers.get(part)) for part in ("major", "minor", "micro"))


class QemuMonitor:
    """A connection to QEMU that is made, and made again, as often as QEMU is there.

    Attributes:
        path: The monitor's socket.
        greeting: Who is there; None while nobody is.
        run_state: QEMU's `RunState`, such as `running` or `paused`; None while unknown.
        pid: QEMU's process; None while unknown.
        problem: Why there is no connection; empty if there is one.
        events: Called with each event, as QEMU sent it.
        changes: Called when QEMU has come, has gone, or its run state is another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.greeting: QemuVersion | None = None
        self.run_state: str | None = None
        self.pid: int | None = None
        self.problem = f"nobody has answered at {path} yet"
        self.events: list[Callable[[Mapping[str, Any]], None]] = []
        self.changes: list[Callable[[], None]] = []
        self._qmp: QMPClient | None = None
        self._slots = asyncio.Semaphore(MAX_IN_BAND)
        self._all_slots = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look for QEMU."""
        self._keeper = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        """Leave QEMU alone."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None

    def status(self) -> dict[str, object]:
        """Return what operators may want to know."""
        return {
            "socket": str(self.path),
            "connected": self.greeting is not None,
            "version": str(self.greeting) if self.greeting else None,
            "run-state": self.run_state,
            "pid": self.pid,
            "problem": self.problem,
        }

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        out_of_band: bool = False,
        fds: FdSet | None = None,
    ) -> Any:
        """Have QEMU execute a command, and return what it returns.

        Args:
            name: The command.
            arguments: Its arguments.
            out_of_band: Execute it at once, whatever else QEMU is doing.
            fds: Descriptors to send along; they stay with the caller.

        Raises:
            RefusedError: QEMU refused it, in QEMU's words; or there is no QEMU, or it has gone.
        """
        verb = "exec-oob" if out_of_band else "execute"
        message = Message({verb: name, "arguments": dict(arguments or {})})
        if out_of_band:
            return await self._ask(message)
        if fds:
            async with self._alone():
                return await self._ask(message, fds)
        async with self._slots:
            return await self._ask(message)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Wait until nothing else is under way: a descriptor travels outside of the queue."""
        async with self._all_slots, contextlib.AsyncExitStack() as stack:
            for _ in range(MAX_IN_BAND):
                await stack.enter_async_context(self._slots)
            yield

    async def _ask(self, message: Message, fds: FdSet | None = None) -> Any:
        qmp = self._qmp
        if qmp is None:
            raise RefusedError(
                f"QEMU's monitor is not connected: {self.problem}",
                hint="the balloon's own commands work without it",
            )
        try:
            if fds:
                # QEMU takes the first of them and closes the others.
                qmp.send_fd_scm(fds.peek())
            return await qmp.execute_msg(message)
        except ExecuteError as error:
            raise RefusedError(str(error), _class_of(error)) from error
        except (QMPError, OSError, EOFError) as error:
            raise RefusedError("QEMU closed its monitor before it answered") from error

    # The connection

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._converse()
            except (QMPError, OSError, EOFError, OperatorError) as error:
                self.problem = str(error)
                log.debug("QEMU's monitor: %s", error)
            except Exception:
                self.problem = "a bug here has broken the connection; the log says more"
                log.exception("QEMU's monitor")
            await asyncio.sleep(RETRY_SECONDS)

    async def _converse(self) -> None:
        """Connect, and pass events on until the connection ends.

        Raises:
            OperatorError: QEMU cannot be reached.
        """
        qmp = await self._connect()
        try:
            with qmp.listener() as events:
                await self._welcome(qmp)
                await self._listen(qmp, events)
        finally:
            self._part()
            with contextlib.suppress(QMPError, OSError, EOFError):
                await qmp.disconnect()

    async def _connect(self) -> QMPClient:
        sock = self._reach()
        qmp = QMPClient("qemu")
        # What there is to say is said here.
        qmp.logger.disabled = True
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await qmp.connect(sock)
        except TimeoutError:
            sock.close()
            raise OperatorError(self._busy()) from None
        self.pid = peer_pid(sock)
        return qmp

    def _reach(self) -> socket.socket:
        """Return a connection; a Unix socket connects at once or not at all."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(self.path))
        except BlockingIOError as error:
            sock.close()
            raise OperatorError(self._busy()) from error
        except OSError as error:
            sock.close()
            raise OperatorError(f"QEMU is not at {self.path}: {error.strerror or error}") from error
        return sock

    def _busy(self) -> str:
        return (
            f"QEMU does not answer at {self.path}: it serves one client at a time, and has another "
            "one there; give Ballast a monitor of its own"
        )

    async def _welcome(self, qmp: QMPClient) -> None:
        assert qmp.greeting is not None
        greeting = qmp.greeting.QMP
        self.greeting = QemuVersion(dict(greeting.version), "oob" in greeting.capabilities)
        self._qmp = qmp
        self.problem = ""
        log.info("QEMU %s answers at %s", self.greeting, self.path)
        await self._look()
        self._changed()

    async def _listen(self, qmp: QMPClient, events: EventListener) -> None:
        listening = asyncio.ensure_future(self._pass_on(events))
        gone = asyncio.ensure_future(self._until_gone(qmp))
        try:
            await asyncio.wait({listening, gone}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
        finally:
            listening.cancel()
            gone.cancel()
        # What came last is passed on before anybody is told that it was the last.
        while not events.empty():
            self._take(await events.get())

    async def _until_gone(self, qmp: QMPClient) -> None:
        while qmp.runstate is Runstate.RUNNING:
            await qmp.runstate_changed()

    async def _pass_on(self, events: EventListener) -> None:
        async for event in events:
            self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] in _CHANGES_RUN_STATE:
            self._spawn(self._look_again())
        for listener in self.events:
            listener(dict(event))

    async def _look(self) -> None:
        with contextlib.suppress(RefusedError):
            self.run_state = (await self.execute("query-status"))["status"]

    async def _look_again(self) -> None:
        await self._look()
        self._changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _part(self) -> None:
        was_there, self.greeting = self.greeting is not None, None
        self._qmp, self.run_state, self.pid = None, None, None
        self.problem = f"QEMU has closed its monitor at {self.path}"
        if was_there:
            log.info("QEMU has left %s", self.path)
            self._changed()

    def _changed(self) -> None:
        for listener in self.changes:
            listener()


def _class_of(error: ExecuteError) -> ErrorClass:
    try:
        return ErrorClass(error.error_class)
    except ValueError:
        return ErrorClass.GENERIC_ERROR

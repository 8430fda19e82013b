"""A guest under a QEMU of ours: started, driven, and ended whatever happens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError

from ballast_images.machine import Machine
from ballast_images.shell import GuestShell
from ballast_protocol.errors import InternalError, OperatorError

START_TIMEOUT_S = 30.0
"""How long QEMU may take until its sockets answer; devices connect to their backends before."""

_CONNECT_PAUSE_S = 0.01
_END_TIMEOUT_S = 5.0
_LAST_WORDS_S = 0.5
_TAIL_LINES = 20

_T = TypeVar("_T")


class Vm:
    """A running guest; an asynchronous context manager that starts and ends QEMU.

    QEMU also ends when this process does, even if it is killed.

    Args:
        machine: What to run.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.qmp = QMPClient(machine.directory.name)
        self._process: asyncio.subprocess.Process | None = None
        self._shell: GuestShell | None = None
        self._resources = AsyncExitStack()

    @property
    def shell(self) -> GuestShell:
        """Runs commands in the guest."""
        if self._shell is None:
            raise InternalError("the VM was not started")
        return self._shell

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._started.pid

    @property
    def status(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self._started.returncode

    async def __aenter__(self) -> Vm:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def wait_ready(self, *, timeout_s: float = 120.0) -> None:
        """Wait until the guest runs commands.

        Raises:
            TimedOutError: It does not in time.
            OperatorError: QEMU ended.
        """
        await self._unless_ended(self.shell.wait_ready(timeout_s=timeout_s))

    async def wait_ended(self) -> int:
        """Wait for QEMU's end and return its exit status, negative for a signal."""
        return await self._started.wait()

    async def shutdown(self) -> int:
        """Power the guest off; if that does not end QEMU, `stop` it. Return QEMU's exit status."""
        if self._shell is not None and self._shell.ready is not None and self.status is None:
            self._shell.post(["poweroff", "-f"])
            await self._ended_within(_END_TIMEOUT_S)
        return await self.stop()

    async def stop(self) -> int:
        """End QEMU: by QMP, else SIGTERM, else SIGKILL. Return its exit status."""
        for end in (self._quit, self._terminate, self._kill):
            if self.status is not None:
                break
            await end()
            await self._ended_within(_END_TIMEOUT_S)
        return await self._started.wait()

    def console_text(self) -> str:
        """Return what the guest has printed on its serial console."""
        return _text(self.machine.console_log)

    def error_text(self) -> str:
        """Return what QEMU has printed."""
        return _text(self.machine.error_log)

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise InternalError("the VM was not started")
        return self._process

    async def _start(self) -> None:
        machine = self.machine
        command = [*machine.command(), "-run-with", "exit-with-parent=on"]
        with machine.error_log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for this process, which then ends the guest in order.
                process_group=0,
            )
        await self._unless_ended(self._connect(), START_TIMEOUT_S)

    async def _connect(self) -> None:
        connection = await _connected(self.machine.control_socket)
        try:
            await self.qmp.connect(connection)
        except QMPError as error:
            connection.close()
            raise OperatorError(f"QEMU does not answer on its control socket: {error}") from error
        self._shell = await self._resources.enter_async_context(
            GuestShell.connected(self.machine.shell_socket)
        )

    async def _unless_ended(
        self, work: Coroutine[Any, Any, _T], timeout_s: float | None = None
    ) -> _T:
        """Do `work`, but stop with what QEMU said as soon as QEMU ends.

        Raises:
            OperatorError: QEMU ended first, or `timeout_s` passed.
        """
        ended = asyncio.ensure_future(self._started.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait(
                [ended, task], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done() and isinstance(task.exception(), OperatorError):
                # A connection of a dying QEMU may close before the process is seen to have ended.
                await asyncio.wait([ended], timeout=_LAST_WORDS_S)
            if ended.done():
                raise self._report(f"QEMU ended with status {ended.result()}")
            if not task.done():
                raise self._report(f"QEMU was not ready within {timeout_s:g} s")
            return task.result()
        finally:
            ended.cancel()
            task.cancel()
            await asyncio.wait([ended, task])

    def _report(self, what: str) -> OperatorError:
        """Return an error with the last that QEMU and the guest have said."""
        said = [
            f"{who}:\n{tail}"
            for who, tail in (
                ("QEMU", _tail(self.error_text())),
                ("guest console", _tail(self.console_text())),
            )
            if tail
        ]
        return OperatorError("\n".join([what, *said]))

    async def _close(self) -> None:
        try:
            if self._process is not None:
                await self.stop()
        finally:
            await self._resources.aclose()
            with suppress(QMPError, EOFError, OSError):
                await self.qmp.disconnect()

    async def _quit(self) -> None:
        with suppress(QMPError, EOFError, OSError, TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self.qmp.execute("quit")

    async def _terminate(self) -> None:
        self._started.terminate()

    async def _kill(self) -> None:
        self._started.kill()

    async def _ended_within(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._started.wait()


async def _connected(path: Path) -> socket.socket:
    """Return a connection to a socket that QEMU makes at some time while it starts."""
    loop = asyncio.get_running_loop()
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            await asyncio.sleep(_CONNECT_PAUSE_S)
        except BaseException:
            connection.close()
            raise


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_TAIL_LINES:])

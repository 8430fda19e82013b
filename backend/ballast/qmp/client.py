"""The other end of a VM's QMP socket, for the command line: QMPClient with plain errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import ErrorClass

CONNECT_SECONDS = 5.0
"""How long a daemon may take to greet."""

REPLY_SECONDS = 10.0
"""How long a reply may take, unless the caller knows better."""


class CommandRefusedError(OperatorError):
    """A command came back with an error.

    Attributes:
        error_class: The `class` of the reply, as `ErrorClass` lists them.
    """

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class BalloonClient:
    """A connection to one VM's QMP socket; made by `connect`.

    Attributes:
        name: The VM's name, for messages.
    """

    def __init__(self, qmp: QMPClient, name: str) -> None:
        self._qmp = qmp
        self.name = name

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_seconds: float = REPLY_SECONDS,
    ) -> object:
        """Execute a command and return what it returns.

        Args:
            command: Its name.
            arguments: Its arguments.
            timeout_seconds: How long the reply may take.

        Raises:
            CommandRefusedError: The VM's daemon refused it.
            TimedOutError: It timed out, here or there.
            OperatorError: The connection is gone.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._qmp.execute(command, dict(arguments or {}))
        except TimeoutError as error:
            raise TimedOutError(
                f"{self.name} did not answer {command} in {timeout_seconds:g} s"
            ) from error
        except ExecuteError as error:
            if error.error_class == ErrorClass.TIMED_OUT.value:
                raise TimedOutError(str(error)) from error
            raise CommandRefusedError(str(error), error.error_class) from error
        except (QMPError, OSError, EOFError) as error:
            raise OperatorError(f"lost the connection to {self.name}: {error}") from error

    async def query(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_seconds: float = REPLY_SECONDS,
    ) -> dict[str, object]:
        """Execute a command that returns an object; otherwise as `execute`."""
        answer = await self.execute(command, arguments, timeout_seconds=timeout_seconds)
        if not isinstance(answer, dict):
            raise OperatorError(f"{self.name} answered {command} with something unexpected")
        return answer

    def resize_events(self) -> contextlib.AbstractContextManager[EventListener]:
        """Return a context in which the events of resizes can be waited for."""
        return self._qmp.listener(("BALLAST_RESIZE_PROGRESS", "BALLAST_RESIZE_DONE"))


def _explain(error: ConnectError | TimeoutError, path: Path, name: str) -> OperatorError:
    cause = error.exc if isinstance(error, ConnectError) else error
    if isinstance(cause, FileNotFoundError):
        return OperatorError(f"no VM named {name} is being served", hint="see `ballast status`")
    if isinstance(cause, ConnectionRefusedError):
        return OperatorError(
            f"nobody serves {name} any more; {path} is left over", hint="see `ballast status`"
        )
    if isinstance(cause, PermissionError):
        return OperatorError(
            f"no permission to open {path}", hint="run this as the user who serves the VM"
        )
    if isinstance(cause, TimeoutError):
        return TimedOutError(f"{path} was opened, but nobody answered in {CONNECT_SECONDS:g} s")
    return OperatorError(f"cannot talk QMP at {path}: {error}")


async def _disconnect(qmp: QMPClient) -> None:
    # What ended the connection has been told by the command that met it, if any did.
    with contextlib.suppress(QMPError, OSError, EOFError):
        await qmp.disconnect()


@contextlib.asynccontextmanager
async def connect(path: Path) -> AsyncIterator[BalloonClient]:
    """Connect to a VM's QMP socket; the directory that it is in has the VM's name.

    Raises:
        OperatorError: Nobody serves there, or it is not for us.
        TimedOutError: Somebody does, but does not answer.
    """
    name = path.parent.name
    qmp = QMPClient(name)
    # Its complaints repeat what is raised here.
    qmp.logger.disabled = True
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await qmp.connect(str(path))
    except (ConnectError, TimeoutError) as error:
        raise _explain(error, path, name) from error
    try:
        yield BalloonClient(qmp, name)
    finally:
        await _disconnect(qmp)

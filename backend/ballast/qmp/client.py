"""The other end of a VM's QMP socket, for the command line: QMPClient with plain errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from ballast.sizes import format_size
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import ErrorClass
from ballast_protocol.virtio.balloon import PAGE_SIZE

CONNECT_SECONDS = 5.0
"""How long a daemon may take to greet."""

REPLY_SECONDS = 10.0
"""How long a reply may take, unless the caller knows better."""

POLL_SECONDS = 0.5
"""How often progress is looked at when no event tells of any."""

_LARGEST_GUEST_PAGE = 64 << 10
"""A guest with larger pages than 4 KiB gives up whole pages, so up to one page more than asked."""


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

    def balloon_changes(self) -> contextlib.AbstractContextManager[EventListener]:
        """Return a context in which BALLOON_CHANGE events can be waited for."""
        return self._qmp.listener("BALLOON_CHANGE")


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


@dataclass(frozen=True)
class Progress:
    """How far the guest has come.

    Attributes:
        actual_bytes: The logical size that it has; None until its driver is active.
        wanted_bytes: The logical size that it should get to.
    """

    actual_bytes: int | None
    wanted_bytes: int

    @property
    def is_reached(self) -> bool:
        """Whether the guest is there, give or take a page of its own."""
        if self.actual_bytes is None:
            return False
        return 0 <= self.wanted_bytes - self.actual_bytes < _LARGEST_GUEST_PAGE

    def __str__(self) -> str:
        if self.actual_bytes is None:
            return "the guest's balloon driver is not active"
        return (
            f"the guest is at {format_size(self.actual_bytes)} of {format_size(self.wanted_bytes)}"
        )


def _optional_int(status: Mapping[str, object], key: str) -> int | None:
    value = status.get(key)
    return value if isinstance(value, int) else None


async def _read_progress(client: BalloonClient, target_bytes: int) -> Progress:
    status = await client.query("ballast-status")
    wanted_bytes = -(-target_bytes // PAGE_SIZE) * PAGE_SIZE
    ram_bytes = _optional_int(status, "ram-bytes")
    if ram_bytes is not None:
        wanted_bytes = min(wanted_bytes, ram_bytes)
    in_force_bytes = _optional_int(status, "target-bytes")
    if in_force_bytes is not None and abs(in_force_bytes - wanted_bytes) >= _LARGEST_GUEST_PAGE:
        raise OperatorError(
            f"{client.name}'s target was changed to {format_size(in_force_bytes)} meanwhile",
            hint="another client or a policy is at work; see `ballast status`",
        )
    return Progress(_optional_int(status, "actual-bytes"), wanted_bytes)


async def _await_change(changes: EventListener, poll_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(poll_seconds):
            await changes.get()


async def wait_for_target(
    client: BalloonClient,
    target_bytes: int,
    timeout_seconds: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Ask the guest for a logical size, and return the size that it has when it got there.

    Args:
        client: The VM's connection.
        target_bytes: The logical size; more than the guest's RAM means all of it.
        timeout_seconds: How long the guest may take.
        on_progress: Called at every look at how far it is.
        poll_seconds: How long to wait between two looks if no event tells of a change.

    Raises:
        TimedOutError: The guest did not get there in time; says how far it got.
        OperatorError: The target was refused, or somebody else has changed it meanwhile.
    """
    progress: Progress | None = None
    with client.balloon_changes() as changes:
        await client.execute("balloon", {"value": target_bytes})
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    progress = await _read_progress(client, target_bytes)
                    on_progress(progress)
                    if progress.actual_bytes is not None and progress.is_reached:
                        return progress.actual_bytes
                    await _await_change(changes, poll_seconds)
        except TimeoutError as error:
            raise TimedOutError(
                f"{client.name}: {progress or 'no answer'} after {timeout_seconds:g} s",
                hint="the target stays in force, and the guest may still get there",
            ) from error

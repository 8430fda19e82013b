"""The host's end of the guest's shell service: runs commands in the guest.

`guest_files/shell.py` documents the protocol.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast_protocol.errors import MalformedError, OperatorError, TimedOutError

PORT_NAME = "org.ballast.shell.0"
"""The virtio-serial port that the service answers on."""

MAX_LINE_BYTES = 32 << 20
"""A line longer than this is no answer: two outputs of 1 MiB, every byte escaped, are shorter."""

_ANSWER_GRACE_S = 15.0
"""How much later than a command's own timeout the guest's word of it may come."""


class CommandFailedError(OperatorError):
    """A command in the guest ended with a status other than 0.

    Attributes:
        result: What it left.
    """

    def __init__(self, command: str, result: CommandResult) -> None:
        said = (result.stderr or result.stdout).strip()[-2000:]
        super().__init__(f"in the guest, `{command}` ended with status {result.status}: {said}")
        self.result = result


class GuestRestartedError(OperatorError):
    """The guest, or its shell service, started anew before a command had ended."""


@dataclass(frozen=True)
class CommandResult:
    """How a command in the guest ended.

    Attributes:
        status: Its exit status; negative for a signal, 127 if it could not be started.
        stdout: The first MiB of its output.
        stderr: The same of its error output.
    """

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return standard output read as JSON."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class GuestReady:
    """Which guest answers.

    Attributes:
        session: Another one each time that the service starts.
        boot_id: Another one each time that the guest boots.
        release: Its kernel, as `uname -r` has it.
    """

    session: str
    boot_id: str
    release: str


class GuestShell:
    """Runs commands in a guest, any number at once.

    Made by `connected`. Survives reboots of the guest: what was running then fails with
    `GuestRestartedError`, and `wait_ready` waits for the new boot.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._running: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ready: GuestReady | None = None
        self._changed = asyncio.Condition()
        self._end: OperatorError | None = None

    @classmethod
    @asynccontextmanager
    async def connected(cls, path: Path) -> AsyncIterator[GuestShell]:
        """Connect to the socket that QEMU serves the port on, for as long as the block runs.

        Raises:
            OSError: Nothing listens there.
        """
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
        shell = cls(reader, writer)
        receiver = asyncio.create_task(shell._receive())
        try:
            shell._send({"hello": True})
            yield shell
        finally:
            receiver.cancel()
            await asyncio.wait([receiver])
            writer.close()

    @property
    def ready(self) -> GuestReady | None:
        """Which guest answers now; None before the first one does."""
        return self._ready

    async def wait_ready(
        self, *, after: GuestReady | None = None, timeout_s: float = 120.0
    ) -> GuestReady:
        """Wait until a guest answers and return which.

        Args:
            after: Wait for one that booted later than this one.
            timeout_s: How long to wait.

        Raises:
            TimedOutError: No guest answered in time.
            OperatorError: QEMU closed the connection.
        """

        def is_new() -> bool:
            ready = self._ready
            return bool(self._end) or (
                ready is not None and (after is None or ready.boot_id != after.boot_id)
            )

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(is_new)
        except TimeoutError:
            raise TimedOutError(f"the guest was not ready within {timeout_s:g} s") from None
        if self._end or self._ready is None:
            raise self._end or OperatorError("the guest is not there")
        return self._ready

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | None = None,
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> CommandResult:
        """Run a command in the guest, once it is ready, and wait for its end.

        Args:
            command: Text for the guest's `sh`, or a program and its arguments.
            stdin: What the command reads; nothing by default.
            timeout_s: When the guest kills it.
            check: Whether a status other than 0 is an error.

        Raises:
            CommandFailedError: The status was not 0, and `check` was asked for.
            TimedOutError: It took longer than `timeout_s`, or the guest stopped answering.
            GuestRestartedError: The guest restarted meanwhile.
            OperatorError: QEMU closed the connection.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else " ".join(command)
        await self.wait_ready()
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._running[number] = future
        try:
            self._send({"id": number, "argv": argv, "stdin": stdin, "timeout": timeout_s})
            async with asyncio.timeout(timeout_s + _ANSWER_GRACE_S):
                answer = await future
        except TimeoutError:
            raise TimedOutError(f"the guest does not answer (it was to run `{shown}`)") from None
        finally:
            del self._running[number]
        if answer["timed_out"]:
            raise TimedOutError(f"in the guest, `{shown}` took longer than {timeout_s:g} s")
        result = CommandResult(answer["status"], answer["stdout"], answer["stderr"])
        if check and result.status != 0:
            raise CommandFailedError(shown, result)
        return result

    async def reboot(self, *, timeout_s: float = 120.0) -> GuestReady:
        """Reboot the guest at once and wait until it answers again.

        Raises:
            TimedOutError: It did not come back in time.
            OperatorError: QEMU closed the connection.
        """
        before = await self.wait_ready()
        self.post(["reboot", "-f"])
        return await self.wait_ready(after=before, timeout_s=timeout_s)

    def post(self, argv: Sequence[str]) -> None:
        """Have the guest run a command whose end nobody waits for, such as one that ends it."""
        self._send({"id": 0, "argv": list(argv), "stdin": None, "timeout": None})

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(b"\n" + json.dumps(message).encode() + b"\n")

    async def _receive(self) -> None:
        try:
            while line := await self._reader.readline():
                await self._handle(line)
            end = OperatorError("QEMU closed the connection to the guest's shell")
        except (OSError, ValueError, MalformedError) as error:
            end = OperatorError(f"the connection to the guest's shell failed: {error}")
        await self._finish(end)

    async def _handle(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            # The tail of what a guest was saying when it was reset.
            return
        if not isinstance(message, dict):
            return
        if "ready" in message:
            await self._set_ready(_parse_ready(message["ready"]))
        elif (future := self._running.get(message.get("id", 0))) and not future.done():
            future.set_result(message)

    async def _set_ready(self, ready: GuestReady) -> None:
        if self._ready is not None and self._ready.session != ready.session:
            self._fail_running(GuestRestartedError("the guest restarted before the command ended"))
        async with self._changed:
            self._ready = ready
            self._changed.notify_all()

    async def _finish(self, end: OperatorError) -> None:
        self._fail_running(end)
        async with self._changed:
            self._end = end
            self._changed.notify_all()

    def _fail_running(self, error: OperatorError) -> None:
        for future in self._running.values():
            if not future.done():
                future.set_exception(error)


def _parse_ready(fields: Any) -> GuestReady:
    try:
        return GuestReady(fields["session"], fields["boot_id"], fields["release"])
    except (TypeError, KeyError) as error:
        raise MalformedError(f"a guest announced itself with {fields!r}") from error

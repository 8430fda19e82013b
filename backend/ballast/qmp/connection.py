"""One client of a QMP socket, from its greeting to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ballast.qmp.commands import Context, execute
from ballast.qmp.registry import answers_late
from ballast_protocol.errors import BallastError, InternalError, OperatorError, TimedOutError
from ballast_protocol.qmp import Command, ErrorClass, RefusedError, Reply, ServerSession

log = logging.getLogger(__name__)

MAX_LATE = 8
"""Commands of one client that are in progress beside its others; with more, the others wait."""

READ_BYTES = 1024
"""Read in one go. Small, so that a client that sends garbage gives the others their turn often."""


@dataclass(frozen=True)
class ClientLimits:
    """How much a client may cost.

    Attributes:
        max_unsent_bytes: Beyond this much that it has not read, it gets no more events: it is
            disconnected. Replies stop long before, since no command is read then.
        patience_seconds: How long it may leave its replies unread before it is disconnected.
    """

    max_unsent_bytes: int = 256 << 10
    patience_seconds: float = 30.0


@dataclass
class ClientCounters:
    """What the clients of one socket have done.

    Attributes:
        connections: How many there ever were.
        dropped: How many were disconnected because they did not read.
        rejected: How many were sent away because there were too many.
        malformed: How many documents were not JSON, or broke a bound.
        commands: How many commands were executed, refused ones included.
    """

    connections: int = 0
    dropped: int = 0
    rejected: int = 0
    malformed: int = 0
    commands: int = 0


class Connection:
    """Serves one client: reads, executes in order, replies, and passes events on."""

    def __init__(
        self,
        context: Context,
        limits: ClientLimits,
        counters: ClientCounters,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        ready: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        """Serve a connected client.

        Args:
            context: What commands work on.
            limits: What the client may cost.
            counters: Where it is counted.
            reader: What it sends.
            writer: Where replies and events go.
            ready: Called when the client may get events, after the reply that tells it so.
        """
        self._ready = ready
        self._context = context
        self._limits = limits
        self._counters = counters
        self._reader = reader
        self._writer = writer
        self._late: set[asyncio.Task[None]] = set()
        self._session = ServerSession(context.version.to_json())
        # Beyond half of what may be unsent, commands wait, so that replies leave room for events.
        writer.transport.set_write_buffer_limits(high=limits.max_unsent_bytes // 2)

    async def run(self) -> None:
        """Serve the client until it leaves, or costs more than it may."""
        try:
            self._writer.write(self._session.greeting())
            while data := await self._reader.read(READ_BYTES):
                self._session.receive_data(data)
                await self._answer()
            await self._finish()
        except TimeoutError:
            self._counters.dropped += 1
            log.warning("QMP client does not read; disconnected")
        except OSError as error:
            log.debug("QMP client left: %s", error)
        finally:
            for task in self._late:
                task.cancel()
            self._writer.transport.abort()

    def send_event(self, event: bytes) -> None:
        """Send an event, if the client is ready for events, or give the client up."""
        if not self._session.in_command_mode or self._writer.transport.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > self._limits.max_unsent_bytes:
            self._counters.dropped += 1
            log.warning("QMP client reads no events; disconnected")
            self._writer.transport.abort()
            return
        self._writer.write(event)

    async def _answer(self) -> None:
        """Reply to everything that was received, with a turn for the others after each reply."""
        was_ready = self._session.in_command_mode
        while (event := self._session.next_event()) is not None:
            if isinstance(event, Command) and self._goes_beside(event):
                await asyncio.sleep(0)
                continue
            reply = self._take(event) if isinstance(event, Reply) else await self._execute(event)
            # No waiting between the decision about the reply and its place in the buffer: an
            # event must not overtake the reply that opens the way for events.
            self._writer.write(reply)
            if self._session.in_command_mode and not was_ready:
                was_ready = True
                self._ready(self)
            async with asyncio.timeout(self._limits.patience_seconds):
                await self._writer.drain()
            await asyncio.sleep(0)
        # Reading on, and replying to a client that reads, need not wait for anything.
        await asyncio.sleep(0)

    def _goes_beside(self, command: Command) -> bool:
        """Execute a command beside the others if it may be long in coming; return whether."""
        if not answers_late(command) or len(self._late) >= MAX_LATE:
            return False
        task = asyncio.get_running_loop().create_task(self._reply_late(command))
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return True

    async def _reply_late(self, command: Command) -> None:
        reply = await self._execute(command)
        if not self._writer.transport.is_closing():
            self._writer.write(reply)

    async def _finish(self) -> None:
        """The client has said its last word but may still be reading: send all there is."""
        if self._late:
            await asyncio.wait(self._late)
        self._writer.close()
        async with asyncio.timeout(self._limits.patience_seconds):
            await self._writer.wait_closed()

    def _take(self, reply: Reply) -> bytes:
        self._counters.malformed += reply.is_to_garbage
        return reply.data

    async def _execute(self, command: Command) -> bytes:
        self._counters.commands += 1
        try:
            return command.success(await execute(self._context, command))
        except Exception as error:
            return command.failure(self._refusal(command, error))

    def _refusal(self, command: Command, error: Exception) -> RefusedError:
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, TimedOutError):
            return RefusedError(str(error), ErrorClass.TIMED_OUT, hint=error.hint)
        if isinstance(error, OperatorError):
            return RefusedError(str(error), hint=error.hint)
        if isinstance(error, BallastError) and not isinstance(error, InternalError):
            return RefusedError(str(error))
        log.error("%s failed", command.name, exc_info=error)
        return RefusedError("internal error", hint="the log of the daemon says more")

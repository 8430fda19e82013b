"""One client of a QMP socket, from its greeting to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from ballast.qmp.registry import answers_late
from ballast.qmp.service import Service
from ballast.streams.client_stream import ClientStream
from ballast.streams.fds import FdSet
from ballast_protocol.errors import (
    BallastError,
    InternalError,
    OperatorError,
    PeerError,
    TimedOutError,
)
from ballast_protocol.qmp import Command, ErrorClass, RefusedError, Reply, ServerSession

log = logging.getLogger(__name__)

READ_BYTES = 1024
"""Read in one go. Small, so that a client that sends garbage gives the others their turn often."""

MAX_QUEUED = 8
"""Commands of a client with out-of-band execution that wait for their turn, as in QEMU."""

MAX_LATE = 8
"""Commands of one client that are in progress beside its others; with more, the others wait."""

MAX_OVERTAKING = 16
"""The same, with those that are executed out of band."""


@dataclass(frozen=True)
class ClientLimits:
    """How much a client may cost.

    Attributes:
        max_unsent_bytes: Beyond this much of events that it has not read, it is disconnected. With
            half as much of replies, no further command is executed until it has read them.
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


_Work = tuple[Command | Reply, FdSet]


class Connection:
    """Serves one client: reads, executes in order, replies, and passes events on.

    A client that has enabled out-of-band execution has its other commands wait in a queue, so that
    reading goes on, and what is out of band overtakes them. So does what answers late.

    Attributes:
        is_qemus: The client was greeted as QEMU, and ends with QEMU's connection.
    """

    def __init__(
        self,
        service: Service,
        limits: ClientLimits,
        counters: ClientCounters,
        stream: ClientStream,
        *,
        ready: Callable[[Connection], None] = lambda connection: None,
    ) -> None:
        """Serve a connected client.

        Args:
            service: What executes commands.
            limits: What the client may cost.
            counters: Where it is counted.
            stream: The client.
            ready: Called when the client may get events, after the reply that tells it so.
        """
        greeting = service.greeting()
        self.is_qemus = greeting.is_qemus
        self._ready = ready
        self._service = service
        self._limits = limits
        self._counters = counters
        self._stream = stream
        self._session = ServerSession(
            greeting.version,
            offers_out_of_band=greeting.offers_out_of_band,
            stream=service.stream(),
        )
        self._fds = FdSet()
        self._unsent_reply_bytes = 0

    async def run(self) -> None:
        """Serve the client until it leaves, or costs more than it may."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks)
        except* TimeoutError:
            self._counters.dropped += 1
            log.warning("QMP client does not read; disconnected")
        except* PeerError as errors:
            log.debug("QMP client left: %s", errors.exceptions[0])
        finally:
            self._stream.close()
            self._fds.close()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        self._stream.write(self._session.greeting())
        lanes = _Lanes(tasks, self._reply_to)
        while data := await self._read():
            self._session.receive_data(data)
            await self._answer(lanes)
        # The client has said its last word, but may still be reading.
        await lanes.finish()
        async with asyncio.timeout(self._limits.patience_seconds):
            await self._stream.drain()

    def end(self) -> None:
        """Read no more of the client; it still gets the replies to what it has sent."""
        self._stream.end_reading()

    def send_event(self, event: bytes) -> None:
        """Send an event, if the client is ready for events, or give the client up."""
        if not self._session.in_command_mode or self._stream.is_closed:
            return
        unsent_bytes = self._stream.unsent_bytes
        # A reply may be larger than all that events may be; what is left of it is not their fault.
        self._unsent_reply_bytes = min(self._unsent_reply_bytes, unsent_bytes)
        if unsent_bytes - self._unsent_reply_bytes > self._limits.max_unsent_bytes:
            self._counters.dropped += 1
            log.warning("QMP client reads no events; disconnected")
            self._stream.close()
            return
        self._stream.write(event)

    async def _read(self) -> bytes:
        """Return more bytes. New descriptors take the place of old ones, as in QEMU."""
        with FdSet() as received:
            data = await self._stream.read(READ_BYTES, received)
            if len(received):
                self._fds.close()
                self._fds = FdSet(received.steal() for _ in range(len(received)))
        return data

    async def _answer(self, lanes: _Lanes) -> None:
        """Reply to everything that was received, with a turn for the others after each reply."""
        was_ready = self._session.in_command_mode
        while (event := self._session.next_event()) is not None:
            work = (event, self._take_fds(event))
            if isinstance(event, Command) and lanes.may_overtake(event):
                await lanes.overtake(work)
            elif self._session.is_out_of_band_enabled and was_ready:
                await lanes.queue(work)
            else:
                await self._reply_to(work)
            if self._session.in_command_mode and not was_ready:
                was_ready = True
                self._ready(self)
            await asyncio.sleep(0)
        # Reading on, and replying to a client that reads, need not wait for anything.
        await asyncio.sleep(0)

    def _take_fds(self, event: Command | Reply) -> FdSet:
        if not isinstance(event, Command) or not self._service.takes_descriptors(event):
            return FdSet()
        taken, self._fds = self._fds, FdSet()
        return taken

    async def _reply_to(self, work: _Work) -> None:
        event, fds = work
        with fds:
            reply = (
                self._take(event) if isinstance(event, Reply) else await self._execute(event, fds)
            )
        # No waiting between the decision about the reply and its place in the buffer: an
        # event must not overtake the reply that opens the way for events.
        self._stream.write(reply)
        self._unsent_reply_bytes = self._stream.unsent_bytes
        async with asyncio.timeout(self._limits.patience_seconds):
            # Beyond half of what may be unsent, commands wait, so that replies leave room for
            # events.
            await self._stream.drain(self._limits.max_unsent_bytes // 2)

    def _take(self, reply: Reply) -> bytes:
        self._counters.malformed += reply.is_to_garbage
        return reply.data

    async def _execute(self, command: Command, fds: FdSet) -> bytes:
        self._counters.commands += 1
        try:
            return command.success(await self._service.execute(command, fds))
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


class _Lanes:
    """How commands pass each other: most in order, some past all others."""

    def __init__(
        self, tasks: asyncio.TaskGroup, reply_to: Callable[[_Work], Coroutine[None, None, None]]
    ) -> None:
        self._tasks = tasks
        self._reply_to = reply_to
        self._waiting: asyncio.Queue[_Work] = asyncio.Queue(MAX_QUEUED)
        self._overtaking: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None

    def may_overtake(self, command: Command) -> bool:
        """Return whether a command need not wait for those before it."""
        is_late = answers_late(command) and len(self._overtaking) < MAX_LATE
        return command.is_out_of_band or is_late

    async def queue(self, work: _Work) -> None:
        """Have this done after everything that was queued before."""
        if self._worker is None:
            self._worker = self._tasks.create_task(self._work_off())
        await self._waiting.put(work)

    async def overtake(self, work: _Work) -> None:
        """Have this done beside everything else."""
        while len(self._overtaking) >= MAX_OVERTAKING:
            await asyncio.wait(self._overtaking, return_when=asyncio.FIRST_COMPLETED)
        task = self._tasks.create_task(self._reply_to(work))
        self._overtaking.add(task)
        task.add_done_callback(self._overtaking.discard)

    async def finish(self) -> None:
        """Wait until everything is done."""
        await self._waiting.join()
        if self._worker is not None:
            self._worker.cancel()
        if self._overtaking:
            await asyncio.wait(self._overtaking)

    async def _work_off(self) -> None:
        while True:
            await self._reply_to(await self._waiting.get())
            self._waiting.task_done()

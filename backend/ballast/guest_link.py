"""The host end of the agent channel: listens for QEMU and talks to the agent inside the guest.

QEMU's arguments::

    -chardev socket,id=agent,path=P,reconnect-ms=1000
    -device virtio-serial -device virtserialport,chardev=agent,name=org.ballast.agent.0

QEMU stays connected whether or not an agent runs, and does not say when one stops. So an agent is
known by its introduction, and missed by the reports that do not come.

The guest is not trusted. Messages are bounded in size by the codec, and the time spent on them by
`READ_BYTES_PER_SECOND`: a guest that floods the channel has to wait, and nobody else has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path

from ballast.guest_status import (
    AgentInfo,
    LinkCounters,
    LinkState,
    ReceivedReport,
    agent_status,
    hyphenated,
    report_status,
)
from ballast.streams.unix import listen
from ballast_protocol.errors import MalformedError, OperatorError, TimedOutError
from ballast_protocol.guest import (
    MAX_INTERVAL_SECONDS,
    MIN_INTERVAL_SECONDS,
    PORT_NAME,
    ErrorReply,
    Hello,
    HelloRequest,
    MemoryReport,
    Message,
    MessageKind,
    ReportRequest,
    SetInterval,
    Welcome,
    agree_on_version,
    decode,
    encode,
    refusal,
)
from ballast_protocol.guest_framing import MAX_REQUEST_ID, Frame, FrameDecoder

DEFAULT_INTERVAL_SECONDS = 5.0

MUTE_INTERVALS = 3
"""An agent that has missed this many reports in a row is called mute."""

HELLO_RETRY_SECONDS = 1.0
"""How often, at most, an agent that reports without introduction is asked for one."""

READ_SIZE = 16 * 1024
READ_BYTES_PER_SECOND = 256 * 1024
MESSAGE_COST_BYTES = 4 * 1024
"""What a message, or a search for the next one, counts as in addition to its bytes."""

MAX_UNSENT_BYTES = 64 * 1024
"""A guest that has left this much unread gets no further requests."""

log = logging.getLogger(__name__)


class LinkEvent(Enum):
    """What happened on the link; the details are in the link's attributes."""

    QEMU_CONNECTED = "qemu-connected"
    QEMU_GONE = "qemu-gone"
    AGENT_ARRIVED = "agent-arrived"
    """An agent introduced itself that was not known, or had been silent."""
    AGENT_MUTE = "agent-mute"
    REPORT = "report"


class GuestLink:
    """Listens at one VM's agent socket.

    Attributes:
        path: The socket that QEMU connects to.
        agent: Who is there; None without introduction.
        mute: Whether the agent has missed `MUTE_INTERVALS` reports.
        last_report: The newest report of this life of the guest. It stays when QEMU goes: look at
            its age.
        counters: For the metrics.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval_seconds: float = DEFAULT_INTERVAL_SECONDS,
        on_event: Callable[[LinkEvent], None] | None = None,
    ) -> None:
        """Prepare a link that does not listen yet.

        Args:
            path: Where to listen.
            interval_seconds: Time between reports, unless the guest asks for another.
            on_event: Called in the event loop after every event; must not raise.

        Raises:
            OperatorError: If the interval is out of bounds.
        """
        _check_interval(interval_seconds)
        self.path = path
        self.agent: AgentInfo | None = None
        self.mute = False
        self.last_report: ReceivedReport | None = None
        self.counters = LinkCounters()
        self._interval = interval_seconds
        self._on_event = on_event
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._writer: asyncio.StreamWriter | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._pending: dict[int, asyncio.Future[MemoryReport]] = {}
        self._last_id = 0
        self._mute_timer: asyncio.TimerHandle | None = None
        self._next_hello_request = 0.0
        self._complained = False

    @property
    def connected(self) -> bool:
        """Whether QEMU is connected."""
        return self._writer is not None

    @property
    def state(self) -> LinkState:
        """How far the conversation has got."""
        if not self.connected:
            return LinkState.NO_QEMU
        if self.agent is None:
            return LinkState.NO_AGENT
        return LinkState.MUTE if self.mute else LinkState.REPORTING

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OperatorError: If the path cannot be listened at.
        """
        sock = listen(self.path, mode=0o600)
        self._inode = os.stat(self.path).st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=READ_SIZE)

    async def close(self) -> None:
        """Stop listening, hang up and remove the socket; calling it again does nothing."""
        if self._server is None:
            return
        # Before the server closes: from Python 3.13 on it would remove the file by itself.
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                self.path.unlink()
        self._server.close()
        if self._conversation is not None:
            self._conversation.cancel()
            await asyncio.wait([self._conversation])
        await self._server.wait_closed()
        self._server = None

    async def request_report(self, timeout_seconds: float) -> MemoryReport:
        """Ask the agent for a report now and return it.

        Raises:
            OperatorError: If there is no agent, or it refuses.
            TimedOutError: If it does not answer in time.
        """
        self._require_agent()
        self._last_id = self._last_id % MAX_REQUEST_ID + 1
        request_id = self._last_id
        self._pending[request_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(ReportRequest(), request_id)
            async with asyncio.timeout(timeout_seconds):
                return await self._pending[request_id]
        except TimeoutError:
            raise TimedOutError(
                f"the agent in the guest did not answer within {timeout_seconds:g} s",
                hint="See in the guest whether ballast-agent still runs.",
            ) from None
        finally:
            del self._pending[request_id]

    def set_interval(self, seconds: float) -> None:
        """Make this agent, and those that come after it, report this often.

        Raises:
            OperatorError: If the interval is out of bounds.
        """
        _check_interval(seconds)
        self._interval = seconds
        if self.agent is not None:
            self.agent = AgentInfo(self.agent.hello, self.agent.protocol_version, seconds)
            self._send(SetInterval(seconds))
            self._expect_report()

    def status(self) -> dict[str, object]:
        """Return everything that is known, as JSON values."""
        report = self.last_report
        age = 0.0 if report is None else asyncio.get_running_loop().time() - report.loop_time
        return {
            "socket": str(self.path),
            "state": self.state.value,
            "agent": None if self.agent is None else agent_status(self.agent),
            "report": None if report is None else report_status(report, age),
            "counters": hyphenated(asdict(self.counters)),
        }

    def _require_agent(self) -> None:
        if self._writer is None:
            raise OperatorError(
                f"QEMU is not connected to {self.path}",
                hint=f"Give it -chardev socket,id=agent,path={self.path},reconnect-ms=1000 and "
                f"-device virtserialport,chardev=agent,name={PORT_NAME}.",
            )
        if self.agent is None:
            raise OperatorError(
                "no agent in this guest", hint="Start ballast-agent inside the guest."
            )
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise OperatorError(
                "the agent in this guest does not read",
                hint="Restart ballast-agent inside the guest.",
            )

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None:
            self.counters.rejected_connections += 1
            log.warning("%s: a second connection was refused", self.path)
            writer.close()
            return
        self._writer = writer
        self.counters.connections += 1
        self._conversation = asyncio.create_task(self._serve(reader, writer))
        self._conversation.add_done_callback(_log_failure)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tell(LinkEvent.QEMU_CONNECTED)
        try:
            await self._converse(reader, writer)
        except OSError as error:
            log.info("%s: the connection broke: %s", self.path, error)
        finally:
            # What a guest has left unread must not keep the socket open.
            writer.transport.abort()
            self._forget_connection()

    def _forget_connection(self) -> None:
        self._writer = self._conversation = self.agent = None
        self._complained = self.mute = False
        if self._mute_timer is not None:
            self._mute_timer.cancel()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(OperatorError("QEMU has closed the agent channel"))
        self._tell(LinkEvent.QEMU_GONE)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder()
        self._next_hello_request = 0.0
        self._ask_for_hello()
        while data := await reader.read(READ_SIZE):
            skipped, resyncs = decoder.skipped_bytes, decoder.resyncs
            frames = decoder.feed(data)
            for frame in frames:
                self._take(frame)
            self.counters.skipped_bytes += decoder.skipped_bytes - skipped
            # Replies that the guest does not read hold up its next messages, not our memory.
            await writer.drain()
            work = len(frames) + decoder.resyncs - resyncs
            await asyncio.sleep((len(data) + work * MESSAGE_COST_BYTES) / READ_BYTES_PER_SECOND)

    def _take(self, frame: Frame) -> None:
        try:
            self._handle(decode(frame), frame.request_id)
        except MalformedError as error:
            self.counters.refused_messages += 1
            # One warning a connection: the guest must not be able to fill the log.
            log.log(
                logging.DEBUG if self._complained else logging.WARNING,
                "%s: a message from the guest was refused: %s",
                self.path,
                error,
            )
            self._complained = True
            if frame.kind != MessageKind.ERROR:
                self._send(refusal(frame.kind, error), frame.request_id)
        else:
            self.counters.messages += 1

    def _handle(self, message: Message, request_id: int) -> None:
        match message:
            case Hello():
                self._greet(message, request_id)
            case MemoryReport():
                self._take_report(message, request_id)
            case ErrorReply():
                self._take_refusal(message, request_id)
            case _:
                raise MalformedError(f"a {type(message).__name__} is not for the host")

    def _greet(self, hello: Hello, request_id: int) -> None:
        version = agree_on_version(hello.protocol_versions)
        if version is None:
            self.agent = None
            raise MalformedError(f"no common version among {hello.protocol_versions}")
        agent = AgentInfo(hello, version, hello.interval_seconds or self._interval)
        if self.last_report is not None and self.last_report.boot_id != hello.boot_id:
            self.last_report = None
        self._send(Welcome(version, agent.interval_seconds), request_id)
        # Its own introduction and the one that we asked for may cross on the way.
        is_news = agent != self.agent or self.mute
        self.agent = agent
        self._expect_report()
        if is_news:
            self._tell(LinkEvent.AGENT_ARRIVED)

    def _take_report(self, report: MemoryReport, request_id: int) -> None:
        if self.agent is None:
            self._ask_for_hello()
            return
        now = asyncio.get_running_loop().time()
        self.last_report = ReceivedReport(report, self.agent.hello.boot_id, now, time.time())
        self._expect_report()
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_result(report)
        self._tell(LinkEvent.REPORT)

    def _take_refusal(self, error: ErrorReply, request_id: int) -> None:
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_exception(OperatorError(f"the agent in the guest refused: {error.reason}"))

    def _ask_for_hello(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_hello_request:
            self._next_hello_request = now + HELLO_RETRY_SECONDS
            self._send(HelloRequest())

    def _expect_report(self) -> None:
        """Start to wait for the next report anew."""
        self.mute = False
        if self._mute_timer is not None:
            self._mute_timer.cancel()
        if self.agent is not None:
            patience = MUTE_INTERVALS * self.agent.interval_seconds
            loop = asyncio.get_running_loop()
            self._mute_timer = loop.call_later(patience, self._declare_mute)

    def _declare_mute(self) -> None:
        self.mute = True
        log.warning("%s: the agent has stopped reporting", self.path)
        self._tell(LinkEvent.AGENT_MUTE)

    def _send(self, message: Message, request_id: int = 0) -> None:
        if self._writer is not None:
            self._writer.write(encode(message, request_id))

    def _tell(self, event: LinkEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _log_failure(conversation: asyncio.Task[None]) -> None:
    if not conversation.cancelled() and conversation.exception() is not None:
        log.error("the agent channel failed", exc_info=conversation.exception())


def _check_interval(seconds: float) -> None:
    if not MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
        raise OperatorError(
            f"{seconds:g} s is no interval for reports",
            hint=f"Choose {MIN_INTERVAL_SECONDS:g} to {MAX_INTERVAL_SECONDS:g} seconds.",
        )

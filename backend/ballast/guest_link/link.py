"""The host end of the agent channel: listens for QEMU and talks to the agent inside the guest.

QEMU's arguments::

    -chardev socket,id=agent,path=P,reconnect-ms=1000
    -device virtio-serial -device virtserialport,chardev=agent,name=org.ballast.agent.0

QEMU stays connected whether or not an agent runs, and does not say when one stops. So an agent is
known by its introduction, and missed by the reports that do not come.

The guest is not trusted. Messages are bounded in size by the codec, and the time spent on them by
`pace.Pace`: a guest that floods the channel has to wait, and nobody else has.

Blocks of memory that the agent hands over are `blocks.BlockSession`'s. What it relies on: messages
are dealt with in order, each to its end before the next, and a conversation that has ended deals
with nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ballast.balloon.blocks import BlockBook
from ballast.guest_link.blocks import AgentBlockMessage, BlockSession
from ballast.guest_link.events import LinkEvent
from ballast.guest_link.mute import MuteWatch
from ballast.guest_link.pace import DEFAULT_INTERVAL_SECONDS, Pace, check_interval
from ballast.guest_link.requests import Answer, Requests
from ballast.guest_status import (
    AgentInfo,
    LinkCounters,
    LinkState,
    ReceivedReport,
    link_status,
)
from ballast.streams.fdstore import VmStore, no_store
from ballast.streams.listening import has_hung_up, kept_listener
from ballast_protocol.errors import MalformedError, OperatorError
from ballast_protocol.guest import (
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
from ballast_protocol.guest_blocks import (
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    CompactDone,
    Holding,
    SweepDone,
)
from ballast_protocol.guest_framing import Frame, FrameDecoder

HELLO_RETRY_SECONDS = 1.0
"""How often, at most, an agent that reports without introduction is asked for one."""

READ_SIZE = 16 * 1024

MAX_UNSENT_BYTES = 64 * 1024
"""A guest that has left this much unread gets no further requests."""

log = logging.getLogger(__name__)


class GuestLink:
    """Listens at one VM's agent socket.

    Attributes:
        path: The socket that QEMU connects to.
        agent: Who is there; None without introduction.
        last_report: The newest report of this life of the guest. It stays when QEMU goes: look at
            its age.
        counters: For the metrics.
        blocks: The trade in blocks of memory; None if the agent is not to hand any over.
    """

    def __init__(
        self,
        path: Path,
        *,
        book: BlockBook | None = None,
        interval_seconds: float = DEFAULT_INTERVAL_SECONDS,
        on_event: Callable[[LinkEvent], None] | None = None,
        store: VmStore | None = None,
    ) -> None:
        """Prepare a link that does not listen yet.

        Args:
            path: Where to listen.
            book: Where blocks that the agent hands over are entered; None if it is to keep them.
            interval_seconds: Time between reports, unless the guest asks for another.
            on_event: Called in the event loop after every event; must not raise.
            store: Where the sockets are kept for a successor, and were left by a predecessor.

        Raises:
            OperatorError: If the interval is out of bounds.
        """
        check_interval(interval_seconds)
        self.path = path
        self.agent: AgentInfo | None = None
        self.last_report: ReceivedReport | None = None
        self.counters = LinkCounters()
        self.blocks: BlockSession | None = None
        if book is not None:
            self.blocks = BlockSession(book, self._send, lambda: self._tell(LinkEvent.BLOCKS))
        self._interval = interval_seconds
        self._on_event = on_event
        self._store = store or no_store()
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._writer: asyncio.StreamWriter | None = None
        self._conversation: asyncio.Task[None] | None = None
        self._requests = Requests(self._send)
        self._watch = MuteWatch(self._be_mute)
        self._next_hello_request = 0.0
        self._complained = False

    @property
    def connected(self) -> bool:
        """Whether QEMU is connected."""
        return self._writer is not None

    @property
    def mute(self) -> bool:
        """Whether the agent has stopped reporting."""
        return self._watch.is_mute

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
        sock = kept_listener(self._store, "agent-listener", self.path)
        self._inode = os.stat(self.path).st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=READ_SIZE)
        if (left := self._store.take("agent")) is not None:
            # A message that the predecessor had half read or half written costs the next one, no
            # more: both ends find the beginning of another.
            connection = socket.socket(fileno=left)
            connection.setblocking(False)
            self._accept(*await asyncio.open_unix_connection(sock=connection, limit=READ_SIZE))

    async def close(self) -> None:
        """Stop listening, hang up and remove the socket; calling it again does nothing."""
        if self._server is None:
            return
        # Before the server closes: from Python 3.13 on it would remove the file by itself.
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                self.path.unlink()
        self._server.close()
        self._store.drop("agent-listener")
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
        return await self.request(ReportRequest(), MemoryReport, timeout_seconds)

    async def request(
        self, message: Message, answer: type[Answer], timeout_seconds: float
    ) -> Answer:
        """Send a request to the agent and return its answer, which is of the type `answer`.

        Raises:
            OperatorError: If there is no agent, or it refuses.
            TimedOutError: If it does not answer in time.
        """
        self._require_agent()
        return await self._requests.ask(message, answer, timeout_seconds)

    def renew(self) -> None:
        """Have the agent introduce itself anew: perhaps the guest has started anew."""
        if self.blocks is not None:
            self.blocks.end()
        if self.agent is not None:
            self._send(HelloRequest())

    def set_interval(self, seconds: float) -> None:
        """Make this agent, and those that come after it, report this often.

        Raises:
            OperatorError: If the interval is out of bounds.
        """
        check_interval(seconds)
        self._interval = seconds
        if self.agent is not None:
            self.agent = AgentInfo(self.agent.hello, self.agent.protocol_version, seconds)
            self._send(SetInterval(seconds))
            self._expect_report()

    def status(self) -> dict[str, object]:
        """Return everything that is known, as JSON values."""
        now = asyncio.get_running_loop().time()
        known = link_status(self.state, self.agent, self.last_report, self.counters, now)
        return {"socket": str(self.path), **known}

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
        self._store.put("agent", writer.get_extra_info("socket").fileno())
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
            self._store.drop("agent")
            self._forget_connection()

    def _forget_connection(self) -> None:
        self._writer = self._conversation = self.agent = None
        if self.blocks is not None:
            self.blocks.end()
        self._complained = False
        self._watch.stop()
        self._requests.abandon("QEMU has closed the agent channel")
        self._tell(LinkEvent.QEMU_GONE)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, pace = FrameDecoder(), Pace()
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
            now = asyncio.get_running_loop().time()
            discarded = 0 if self.blocks is None else self.blocks.account()
            await asyncio.sleep(pace.spend(len(data), work, discarded, now))

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
            case ErrorReply(reason=reason):
                self._requests.refuse(request_id, f"the agent in the guest refused: {reason}")
            case BlocksReport() | BlocksReleased() | Holding() | BlocksStatus() | SweepDone():
                self._take_blocks(message, request_id)
            case CompactDone():
                self._requests.answer(request_id, message)
            case _:
                raise MalformedError(f"a {type(message).__name__} is not for the host")

    def _take_blocks(self, message: AgentBlockMessage, request_id: int) -> None:
        if self.blocks is None:
            raise MalformedError("this host takes no blocks")
        if isinstance(message, BlocksReport) and has_hung_up(self._writer):
            raise ConnectionResetError("a report was read after its sender had gone")
        if self.agent is None:
            self._ask_for_hello()
        self.blocks.take(message, request_id)
        if isinstance(message, SweepDone):
            self._requests.answer(request_id, message)

    def _greet(self, hello: Hello, request_id: int) -> None:
        version = agree_on_version(hello.protocol_versions)
        if version is None:
            self.agent = None
            if self.blocks is not None:
                self.blocks.end()
            raise MalformedError(f"no common version among {hello.protocol_versions}")
        agent = AgentInfo(hello, version, hello.interval_seconds or self._interval)
        if self.last_report is not None and self.last_report.boot_id != hello.boot_id:
            self.last_report = None
        session = None if self.blocks is None else self.blocks.begin(hello, version)
        welcome = Welcome(version, agent.interval_seconds, hello.hello_id, session)
        self._send(welcome, request_id)
        is_news = self.mute or self.agent is None or not agent.is_same_as(self.agent)
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
        self._requests.answer(request_id, report)
        self._tell(LinkEvent.REPORT)

    def _ask_for_hello(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_hello_request:
            self._next_hello_request = now + HELLO_RETRY_SECONDS
            self._send(HelloRequest())

    def _expect_report(self) -> None:
        """Start to wait for the next report anew."""
        if self.agent is not None:
            self._watch.expect(self.agent.interval_seconds)

    def _be_mute(self) -> None:
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

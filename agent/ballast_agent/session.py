"""What the agent says and when: bytes in, bytes out, time passed in. No I/O, no clock.

The agent introduces itself until it is welcomed, then reports at the interval that the host asked
for. The host can ask for a new introduction at any time, which is how a restarted daemon is noticed
where the channel does not show it.

What is said about blocks goes on to `ballast_agent.blocks`; the session sees to it that only a
welcome to the newest hello counts there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace

from ballast_agent.blocks.manager import BlockManager
from ballast_protocol.errors import BallastError, MalformedError
from ballast_protocol.guest import (
    VERSIONS,
    ErrorReply,
    Hello,
    HelloRequest,
    MemoryReport,
    Message,
    MessageKind,
    ReportRequest,
    SetInterval,
    Welcome,
    decode,
    encode,
    refusal,
)
from ballast_protocol.guest_blocks import BLOCK_MESSAGES
from ballast_protocol.guest_framing import Frame, FrameDecoder

HELLO_RETRY_SECONDS = 5.0
"""How long the agent waits for a welcome before it introduces itself again."""

FIRST_HELLO_SECONDS = 0.5
"""How long an agent on a new connection waits to be asked who it is.

A host asks at once. Two introductions that cross would begin two sessions, and whatever was begun
in the first would end with it. One whose conversation with a former agent goes on does not ask.
"""

REFUSED_RETRY_SECONDS = 60.0
"""The same, after the host has refused it."""

MAX_OUTPUT_BYTES = 256 * 1024
"""While more than this waits to be sent, no further request is read."""

log = logging.getLogger(__name__)


class AgentSession:
    """One agent's side of the conversation, across all the connections of its life.

    Attributes:
        output: Bytes to send; whoever sends them deletes them from the front.
        blocks: What takes blocks; None in an agent that takes none.
    """

    def __init__(
        self,
        hello: Hello,
        take_report: Callable[[], MemoryReport],
        new_id: Callable[[], int] = lambda: random.getrandbits(62),
    ) -> None:
        """Begin with nobody connected.

        Args:
            hello: What to introduce the agent with.
            take_report: Called for every report; may raise a `BallastError`.
            new_id: Returns a number that no hello of any agent in this guest has had.
        """
        self.output = bytearray()
        self.blocks: BlockManager | None = None
        self._hello = hello
        self._hello_bytes = b""
        self._new_id = new_id
        self._greeted = False
        self._take_report = take_report
        self._decoder = FrameDecoder()
        self._interval: float | None = None
        self._next: float | None = None

    @property
    def welcomed(self) -> bool:
        """Whether the host has answered the introduction."""
        return self._interval is not None

    @property
    def wants_input(self) -> bool:
        """Whether there is room for the replies to further requests."""
        return len(self.output) <= MAX_OUTPUT_BYTES

    def deadline(self) -> float | None:
        """Return when `tick` is due; None if nothing is."""
        blocks = None if self.blocks is None else self.blocks.deadline()
        return min((time for time in (self._next, blocks) if time is not None), default=None)

    def connected(self, now: float) -> None:
        """The host is there, and will ask for an introduction; if not, it gets one soon."""
        self._decoder.reset()
        self.output.clear()
        self._greeted = True
        self._interval = None
        self._next = now + FIRST_HELLO_SECONDS
        if self.blocks is not None:
            self.blocks.connected(now)
            self._renew_hello()

    def disconnected(self, now: float) -> None:
        """The host has gone: what was half said is void."""
        self._decoder.reset()
        self.output.clear()
        self._interval = self._next = None
        if self.blocks is not None and self._greeted:
            self.blocks.disconnected(now)
        self._greeted = False

    def tick(self, now: float) -> None:
        """Do what is due by `now`."""
        if self.blocks is not None:
            due = self.blocks.deadline()
            if due is not None and now >= due:
                self.blocks.tick(now)
        if self._next is None or now < self._next:
            return
        if self._interval is None:
            self._introduce(now)
            return
        # Counted from now, not from the last deadline: a guest that was paused for an hour
        # has one report to send, not a hundred.
        self._next = now + self._interval
        if not self.output:
            self._report_unasked()
            if self.blocks is not None:
                self.blocks.send_status(now)

    def receive(self, data: bytes, now: float) -> None:
        """Take the next bytes from the host."""
        for frame in self._decoder.feed(data):
            self._take(frame, now)

    def _take(self, frame: Frame, now: float) -> None:
        try:
            self._obey(decode(frame), frame.request_id, now)
        except BallastError as error:
            log.warning("refused a message from the host: %s", error)
            if frame.kind != MessageKind.ERROR:
                self.send(refusal(frame.kind, error), frame.request_id)

    def _obey(self, message: Message, request_id: int, now: float) -> None:
        if isinstance(message, HelloRequest):
            self._introduce(now, request_id)
        elif isinstance(message, Welcome):
            self._be_welcomed(message, now)
        elif isinstance(message, SetInterval):
            self._set_interval(message.interval_seconds, now)
        elif isinstance(message, ReportRequest):
            self.send(self._take_report(), request_id)
        elif isinstance(message, ErrorReply):
            self._be_refused(message, request_id, now)
        elif self.blocks is None or not self._is_for_blocks(message, request_id, now):
            raise MalformedError(f"a {type(message).__name__} is not for an agent")

    def _introduce(self, now: float, request_id: int = 0) -> None:
        self._interval = None
        self._next = now + HELLO_RETRY_SECONDS
        # The host may not be reading: one introduction in waiting is enough. Anything else that
        # waits is no reason to stay unknown to a host that does read.
        if not request_id and self._hello_bytes and self._hello_bytes in self.output:
            return
        if self.blocks is not None:
            self._renew_hello()
        self._hello_bytes = encode(self._hello, request_id)
        self.output += self._hello_bytes

    def _renew_hello(self) -> None:
        """Have no welcome count but that to the introduction which comes next."""
        assert self.blocks is not None
        self.blocks.introduced()
        self._hello = replace(self._hello, hello_id=self._new_id())

    def _be_welcomed(self, welcome: Welcome, now: float) -> None:
        if welcome.protocol_version not in VERSIONS:
            raise MalformedError(f"version {welcome.protocol_version} was not on offer")
        if not self.welcomed:
            log.info("the host wants a report every %g s", welcome.interval_seconds)
        self._interval = welcome.interval_seconds
        self._next = now
        # One that answers an older hello says nothing about what was reported since.
        if self.blocks is not None and welcome.hello_id in (None, self._hello.hello_id):
            self.blocks.welcomed(welcome.session, now)

    def _set_interval(self, seconds: float, now: float) -> None:
        if self._interval is None:
            return
        self._interval = seconds
        self._next = min(now + seconds, self._next or now)

    def _is_for_blocks(self, message: Message, request_id: int, now: float) -> bool:
        return (
            self.blocks is not None
            and isinstance(message, BLOCK_MESSAGES)
            and self.blocks.receive(message, request_id, now)
        )

    def _be_refused(self, error: ErrorReply, request_id: int, now: float) -> None:
        log.warning("the host refused a message of kind %d: %s", error.refused_kind, error.reason)
        if error.refused_kind == MessageKind.HELLO:
            self._interval = None
            self._next = now + REFUSED_RETRY_SECONDS
        elif self.blocks is not None:
            self.blocks.refused(request_id, error.reason, now)

    def _report_unasked(self) -> None:
        try:
            self.send(self._take_report())
        except BallastError as error:
            log.error("no report: %s", error)

    def send(self, message: Message, request_id: int = 0) -> None:
        """Put a message into the output."""
        self.output += encode(message, request_id)

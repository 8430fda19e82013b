"""A guest with an agent, a host, and the channel between them, all of which can break.

The host does what the daemon promises: it discards on receipt, acknowledges after that, takes
reports of the current session only, and has one conversation at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ballast_agent.blocks.background import Done, Job
from ballast_agent.blocks.manager import BlockManager
from ballast_agent.blocks.options import BlockOptions
from ballast_agent.session import AgentSession
from ballast_protocol.errors import MalformedError
from ballast_protocol.guest import (
    Hello,
    HelloRequest,
    MemoryReport,
    Message,
    Welcome,
    decode,
    encode,
    refusal,
)
from ballast_protocol.guest_blocks import (
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Holding,
    HoldingAck,
    NodeGoal,
    merge_blocks,
    split_blocks,
)
from ballast_protocol.guest_framing import FrameDecoder
from support.fake_kernel import FakeKernel, KilledError
from support.guest_messages import HELLO, report

MOST_STEPS_A_SECOND = 120
"""What an agent does whose guest is nearly short of memory: it looks every ten milliseconds."""


@dataclass
class ScriptedHost:
    """The daemon's side of the conversation.

    Attributes:
        discard: Called for every block that is discarded.
        ledger: Blocks that the guest has given up, with their nodes.
        heard: All that the agent has said.
        refuse: Blocks that it will not have.
    """

    discard: Callable[[int], None]
    sessions: itertools.count[int]
    ledger: dict[int, int] = field(default_factory=dict)
    heard: list[tuple[int, Message]] = field(default_factory=list)
    refuse: set[int] = field(default_factory=set)
    wants_blocks: bool = True
    session: int | None = None
    listed: dict[int, int] = field(default_factory=dict)
    output: bytearray = field(default_factory=bytearray)
    decoder: FrameDecoder = field(default_factory=FrameDecoder)

    def receive(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            try:
                message = decode(frame)
                self.heard.append((frame.request_id, message))
                self._take(message, frame.request_id)
            except MalformedError as error:
                self.send(refusal(frame.kind, error), frame.request_id)

    def send(self, message: Message, request_id: int = 0) -> None:
        self.output += encode(message, request_id)

    def _take(self, message: Message, request_id: int) -> None:
        if isinstance(message, Hello):
            self.session = next(self.sessions) if self.wants_blocks else None
            welcome = Welcome(2, 5.0, hello_id=message.hello_id, session=self.session)
            self.listed = {}
            self.send(welcome, request_id)
        elif isinstance(message, (BlocksReport, BlocksReleased, Holding)):
            if message.session != self.session:
                raise MalformedError("this belongs to another session")
            if isinstance(message, BlocksReport):
                self._discard(message, request_id)
            elif isinstance(message, BlocksReleased):
                for pfn in split_blocks(message.ranges):
                    self.ledger.pop(pfn, None)
            else:
                self._compare(message, request_id)

    def _discard(self, message: BlocksReport, request_id: int) -> None:
        blocks = split_blocks(message.ranges)
        refused = {pfn: node for pfn, node in blocks.items() if pfn in self.refuse}
        for pfn in blocks.keys() - refused.keys():
            self.discard(pfn)
            self.ledger[pfn] = blocks[pfn]
        size = (len(blocks) - len(refused)) << 21
        self.send(BlocksAck(message.session, merge_blocks(refused), size), request_id)

    def _compare(self, message: Holding, request_id: int) -> None:
        part = split_blocks(message.ranges)
        self.listed.update(part)
        known = {pfn: node for pfn, node in part.items() if pfn in self.ledger}
        if message.last:
            self.ledger = {p: n for p, n in self.ledger.items() if p in self.listed}
        self.send(HoldingAck(message.session, merge_blocks(known)), request_id)


class Later:
    """Background work that is done when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, Done]] = []

    def submit(self, job: Job, done: Done) -> None:
        self.jobs.append((job, done))

    def finish(self) -> bool:
        """Do all of it; tell whether there was anything."""
        jobs, self.jobs = self.jobs, []
        for job, done in jobs:
            job()
            done(0.5)
        return bool(jobs)


class World:
    """All of it; time is what the test says."""

    def __init__(self, kernel: FakeKernel, options: BlockOptions | None = None) -> None:
        self.kernel = kernel
        self.options = options or BlockOptions(reserve_bytes=8 << 21)
        self.now = 100.0
        self.background = Later()
        self._ids = itertools.count(1)
        self._sessions = itertools.count(1000)
        self._requests = itertools.count(1)
        self.to_host = bytearray()
        self.to_agent = bytearray()
        self.host: ScriptedHost | None = None
        self.session: AgentSession | None = None
        self.start_host()
        self.start_agent()

    @property
    def blocks(self) -> BlockManager:
        assert self.session is not None
        assert self.session.blocks is not None
        return self.session.blocks

    # Ends that come and go

    def start_host(self) -> None:
        """Begin a conversation; the host's book is that of the one before."""
        ledger = {} if self.host is None else self.host.ledger
        self.host = ScriptedHost(self.kernel.discard, self._sessions, ledger)
        self.host.send(HelloRequest())
        self._told = True
        if self.session is not None:
            self._guarded(lambda session: session.connected(self.now))

    def stop_host(self) -> None:
        """End the conversation; what the host has not read by now it will never act on."""
        if self._told:
            self._told = False
            assert self.host is not None
            self.host = replace(self.host, session=None, output=bytearray())
            self.to_agent.clear()
            self._guarded(lambda session: session.disconnected(self.now))

    def start_agent(self) -> None:
        """Start an agent where none runs."""
        if self.session is not None:
            return
        session = AgentSession(HELLO, self._report, lambda: next(self._ids))
        self.background = Later()
        self.session = session

        def begin(session: AgentSession) -> None:
            first_id = next(self._ids) * 1000
            session.blocks = BlockManager(
                self.kernel, session.send, self.background, self.options, first_id
            )
            session.blocks.start(self.now)
            if self._told:
                session.connected(self.now)

        self._guarded(begin)

    def kill_agent(self) -> None:
        """Kill the agent; what it had not yet written to the channel is lost."""
        self.session = None

    def _report(self) -> MemoryReport:
        return report()

    # Steps

    def _guarded(self, step: Callable[[AgentSession], object]) -> None:
        """Let the agent do something, which may be its last."""
        if self.session is None:
            return
        try:
            step(self.session)
        except KilledError:
            self.kill_agent()

    def agent_writes(self, limit: int = 1 << 30) -> None:
        """Let bytes go from the agent into the channel."""
        if self.session is not None and self._told:
            self.to_host += self.session.output[:limit]
            del self.session.output[:limit]

    def host_reads(self, limit: int = 1 << 30) -> None:
        """Let bytes go from the channel to the host, and its answers into the channel."""
        self.host_hears(limit)
        self.host_writes()

    def host_hears(self, limit: int = 1 << 30) -> None:
        """Let bytes go from the channel to the host, which keeps its answers for `host_writes`."""
        if self._told and self.host is not None:
            data = bytes(self.to_host[:limit])
            del self.to_host[:limit]
            self.host.receive(data)

    def host_writes(self, limit: int = 1 << 30) -> None:
        """Let bytes go from the host into the channel."""
        if self._told and self.host is not None:
            self.to_agent += self.host.output[:limit]
            del self.host.output[:limit]

    def agent_reads(self, limit: int = 1 << 30) -> None:
        """Let bytes go from the channel to the agent."""
        data = bytes(self.to_agent[:limit])
        if self.session is not None and data:
            del self.to_agent[:limit]
            self._guarded(lambda session: session.receive(data, self.now))

    def agent_ticks(self) -> None:
        """Let the agent do what is due."""
        self._guarded(lambda session: session.tick(self.now))

    def run(self, seconds: float = 0.0) -> None:
        """Let everything happen that is to happen within a time."""
        until = self.now + seconds
        for _ in range(10_000 + int(MOST_STEPS_A_SECOND * seconds)):
            self._guarded(self._collect)
            self.agent_writes()
            self.host_reads()
            if self.to_agent and self.session is not None:
                self.agent_reads()
                continue
            due = None if self.session is None else self.session.deadline()
            if due is not None and due <= until:
                self.now = max(self.now, due)
                self.agent_ticks()
            elif self.session is None or not self.session.output:
                self.now = until
                return
        raise AssertionError("it never comes to rest")

    def _collect(self, session: AgentSession) -> None:
        if self.background.finish() and session.blocks is not None:
            session.blocks.tick(self.now)

    # What the operator does

    def say(self, message: Message) -> int:
        """Let the host say something; return its request id."""
        assert self.host is not None
        request_id = next(self._requests)
        self.host.send(message, request_id)
        return request_id

    def aim(self, *goals: tuple[int, int]) -> int:
        """Set a goal in blocks, by node."""
        return self.say(BlocksGoal(tuple(NodeGoal(node, count << 21) for node, count in goals)))

    def answer(self, request_id: int) -> Message | None:
        """Return what the agent has answered to a request; None if nothing yet."""
        assert self.host is not None
        asked = (message for number, message in self.host.heard if number == request_id)
        wanted = (m for m in asked if not isinstance(m, (BlocksReport, Holding, Hello)))
        return next(wanted, None)

    def last_status(self) -> BlocksStatus:
        """Return the newest status."""
        assert self.host is not None
        return next(m for _, m in reversed(self.host.heard) if isinstance(m, BlocksStatus))

    @property
    def isolated(self) -> set[int]:
        """Blocks that are in the pool."""
        return {block.pfn for block in self.kernel.in_state("pool")}

    @property
    def ledger(self) -> set[int]:
        """Blocks in the host's book."""
        assert self.host is not None
        return set(self.host.ledger)

    def status_of(self, request_id: int) -> BlocksStatus:
        """Return the status that answers a request."""
        answer = self.answer(request_id)
        assert isinstance(answer, BlocksStatus)
        return answer

    def assert_books_agree(self) -> None:
        """Check that the host's book is the pool, and that no page in use was discarded."""
        assert self.ledger == self.isolated
        self.kernel.verify()

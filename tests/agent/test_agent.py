from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from ballast_agent import agent as agent_module
from ballast_agent.agent import Agent
from ballast_agent.channel import Channel
from ballast_agent.session import AgentSession
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import (
    HelloRequest,
    MemoryReport,
    Message,
    ReportRequest,
    Welcome,
    decode,
    encode,
)
from ballast_protocol.guest_framing import FrameDecoder
from support.guest_messages import HELLO, report

PATIENCE_SECONDS = 20


class WatchedChannel(Channel):
    """Tells when the agent has found out that nobody is there."""

    def __init__(self, fd: int, *, revives: bool) -> None:
        super().__init__(fd, revives=revives)
        self.seen_away = threading.Event()

    def host_is_there(self) -> bool:
        present = super().host_is_there()
        if not present:
            self.seen_away.set()
        return present


class Host:
    """The other end: either a port that outlives its hosts, or a socket that does not."""

    def __init__(self, *, revives: bool) -> None:
        self.opened = threading.Semaphore(0)
        self._revives = revives
        self._sock: socket.socket | None = None
        self._channel: WatchedChannel | None = None
        self._decoder = FrameDecoder()
        self._frames: list[Message] = []

    def open(self) -> Channel | None:
        if self._sock is None:
            return None
        self._channel = WatchedChannel(self._theirs.detach(), revives=self._revives)
        self.opened.release()
        return self._channel

    def come(self) -> None:
        """Begin to listen; a port comes alive under the descriptor that the agent has open."""
        sock, self._theirs = socket.socketpair()
        sock.settimeout(PATIENCE_SECONDS)
        if self._revives and self._channel is not None:
            os.dup2(self._theirs.fileno(), self._channel.fileno())
            self._theirs.close()
        self._decoder.reset()
        self._sock = sock

    def go(self) -> None:
        assert self._sock is not None
        gone, self._sock = self._sock, None
        if self._channel is not None:
            self._channel.seen_away.clear()
        gone.close()

    def go_noticed(self) -> None:
        """Go, and wait until the agent knows; a port whose host is back sooner never tells."""
        self.go()
        if self._revives and self._channel is not None:
            assert self._channel.seen_away.wait(PATIENCE_SECONDS)

    def say(self, message: Message, request_id: int = 0) -> None:
        assert self._sock is not None
        self._sock.sendall(encode(message, request_id))

    def say_all(self, message: Message, count: int) -> None:
        assert self._sock is not None
        self._sock.sendall(encode(message, 1) * count)

    def hear(self) -> Message:
        assert self._sock is not None, "the host is away"
        while not self._frames:
            data = self._sock.recv(1 << 16)
            assert data, "the agent hung up"
            self._frames += [decode(frame) for frame in self._decoder.feed(data)]
        return self._frames.pop(0)


class Running:
    """An agent in a thread of its own."""

    def __init__(self, host: Host) -> None:
        self.agent = Agent(host, AgentSession(HELLO, report))
        self.error: OperatorError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.agent.run()
        except OperatorError as error:
            self.error = error

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "RETRY_SECONDS", 0.01)


@pytest.fixture(params=[True, False], ids=["port", "socket"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host(revives=request.param)
    running = Running(host)
    running.start()
    yield host
    running.agent.stop()
    running.join()
    running.agent.close()
    if host._sock is not None:
        host.go()


def test_a_conversation(host: Host) -> None:
    host.come()
    assert host.hear() == HELLO
    host.say(Welcome(1, 3600.0))
    assert isinstance(host.hear(), MemoryReport)
    host.say(ReportRequest(), 7)
    assert isinstance(host.hear(), MemoryReport)


def test_a_host_that_comes_back_is_told_everything_anew(host: Host) -> None:
    for _ in range(3):
        host.come()
        assert host.hear() == HELLO
        host.say(Welcome(1, 3600.0))
        assert isinstance(host.hear(), MemoryReport)
        host.go_noticed()


def test_a_host_that_asks_is_told_anew(host: Host) -> None:
    host.come()
    assert host.hear() == HELLO
    host.say(HelloRequest(), 3)
    assert host.hear() == HELLO


def test_more_than_the_channel_holds_arrives_whole(host: Host) -> None:
    host.come()
    assert host.hear() == HELLO
    host.say_all(ReportRequest(), 2000)
    for _ in range(2000):
        assert host.hear() == report()


def test_a_port_stays_open_while_its_host_is_away() -> None:
    host = Host(revives=True)
    running = Running(host)
    host.come()
    running.start()
    assert host.hear() == HELLO
    host.go_noticed()
    host.come()
    assert host.hear() == HELLO
    running.agent.stop()
    running.join()
    running.agent.close()
    host.go()
    assert host.opened.acquire(blocking=False)
    assert not host.opened.acquire(blocking=False)


def test_an_endpoint_that_cannot_be_used_ends_the_agent() -> None:
    class Forbidden(Host):
        def open(self) -> Channel | None:
            raise OperatorError("may not be opened")

    running = Running(Forbidden(revives=True))
    running.start()
    running.join()
    running.agent.close()
    assert str(running.error) == "may not be opened"

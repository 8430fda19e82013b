"""The channel for config changes, with a hand on each side of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from ballast.streams.unix import MessageSocket
from ballast.transport.vhost_user.notifier import ConfigNotifier, NotifierCounts
from ballast_protocol.errors import PeerError
from ballast_protocol.vhost_user.channel import UNKNOWN_REQUEST
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    BackendRequest,
    Header,
    HeaderFlag,
    U64Payload,
    pack_message,
)
from support.backend import until
from support.fds import none_left_open


class Channel:
    """A notifier and QEMU's end of its channel.

    Attributes:
        running: Whether the rings run.
        settling: Called each time the notifier looks at the rings.
        settled: How often it did.
        failures: What it said of a broken channel.
    """

    def __init__(self, *, need_reply: bool) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.running = True
        self.settling: Callable[[], None] = lambda: None
        self.settled = 0
        self.failures: list[str] = []
        self.counts = NotifierCounts()
        self.notifier = ConfigNotifier(
            MessageSocket(ours, lambda: self.notifier.readable(), self._broken),
            need_reply=need_reply,
            settle=self._settle,
            failed=self._failed,
            counts=self.counts,
        )

    def _settle(self) -> bool:
        self.settled += 1
        self.settling()
        return self.running

    def _broken(self, error: PeerError) -> None:
        self._failed(str(error))

    def _failed(self, reason: str) -> None:
        self.failures.append(reason)
        self.notifier.close()

    async def read(self, size: int) -> bytes:
        """Take exactly `size` bytes as QEMU does."""
        data = b""
        async with asyncio.timeout(20):
            while len(data) < size:
                data += await asyncio.get_running_loop().sock_recv(self.peer, size - len(data))
        return data

    async def message(self) -> int:
        """Take one message; return its request, acknowledged if it asked for that."""
        header = Header.unpack(await self.read(Header.SIZE))
        assert header.size == 0
        if header.flags & HeaderFlag.NEED_REPLY:
            self.acknowledge(header.request)
        return header.request

    def acknowledge(self, request: int) -> None:
        self.peer.send(pack_message(request, U64Payload(0).pack(), REPLY_FLAGS))

    def waiting(self) -> int:
        """Return how many bytes are there for QEMU."""
        try:
            return len(self.peer.recv(100, socket.MSG_PEEK))
        except BlockingIOError:
            return 0


async def turns() -> None:
    """Let the loop turn often enough for anything that is due."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(params=[True, False], ids=["acknowledged", "unacknowledged"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    with none_left_open():
        channel = Channel(need_reply=request.param)
        yield channel
        channel.notifier.close()
        channel.peer.close()


async def test_the_rest_follows_only_when_the_first_byte_was_taken(channel: Channel) -> None:
    channel.notifier.notify()
    await until(lambda: channel.waiting() > 0)
    await turns()
    assert channel.waiting() == 1
    assert channel.settled == 1
    assert await channel.message() == BackendRequest.CONFIG_CHANGE
    assert (channel.counts.sent, channel.counts.cancelled) == (1, 0)
    assert channel.settled == 2


async def test_whoever_asks_is_not_served_in_the_middle_of_its_work(channel: Channel) -> None:
    channel.notifier.notify()
    assert (channel.settled, channel.waiting()) == (0, 0)
    await channel.message()


async def test_nothing_is_begun_while_the_rings_stand(channel: Channel) -> None:
    channel.running = False
    channel.notifier.notify()
    await until(lambda: channel.settled == 1)
    assert channel.waiting() == 0
    assert channel.notifier.is_wanted
    channel.running = True
    channel.notifier.pump()
    assert await channel.message() == BackendRequest.CONFIG_CHANGE
    assert not channel.notifier.is_wanted


async def test_a_stop_in_between_calls_it_off(channel: Channel) -> None:
    channel.notifier.notify()
    await until(lambda: channel.waiting() > 0)
    channel.running = False
    assert await channel.message() == UNKNOWN_REQUEST
    await until(lambda: channel.counts.cancelled == 1)
    assert channel.notifier.is_wanted
    channel.running = True
    channel.notifier.pump()
    assert await channel.message() == BackendRequest.CONFIG_CHANGE


async def test_many_requests_are_one_message_and_a_later_one_is_another(channel: Channel) -> None:
    for _ in range(5):
        channel.notifier.notify()
    await channel.message()
    await until(lambda: channel.counts.sent == 1)
    channel.notifier.notify()
    await channel.message()
    assert channel.counts.sent == 2
    assert channel.waiting() == 0


async def test_what_is_wanted_while_an_acknowledgement_is_due_waits_for_it() -> None:
    channel = Channel(need_reply=True)
    channel.notifier.notify()
    header = Header.unpack(await channel.read(Header.SIZE))
    channel.notifier.notify()
    await turns()
    assert channel.waiting() == 0
    channel.acknowledge(header.request)
    assert await channel.message() == BackendRequest.CONFIG_CHANGE
    channel.notifier.close()
    channel.peer.close()


async def test_closing_lets_qemu_go_if_it_holds_the_first_byte(channel: Channel) -> None:
    channel.notifier.notify()
    await until(lambda: channel.waiting() > 0)
    channel.notifier.close()
    assert Header.unpack(await channel.read(Header.SIZE)).request == UNKNOWN_REQUEST
    assert await asyncio.get_running_loop().sock_recv(channel.peer, 1) == b""


@pytest.mark.parametrize("look", [1, 2], ids=["before the first byte", "before the rest"])
async def test_what_settling_serves_may_end_the_channel(channel: Channel, look: int) -> None:
    """SET_BACKEND_REQ_FD brings another channel: the old one must not be told to have failed."""
    channel.settling = lambda: channel.notifier.close() if channel.settled == look else None
    channel.notifier.notify()
    await until(lambda: channel.settled == 1)
    if look == 2:
        assert Header.unpack(await channel.read(Header.SIZE)).request == UNKNOWN_REQUEST
    assert await asyncio.get_running_loop().sock_recv(channel.peer, 1) == b""
    channel.notifier.pump()
    await asyncio.sleep(0)
    assert channel.failures == []
    assert channel.counts == NotifierCounts()


async def test_a_channel_that_qemu_closes(channel: Channel) -> None:
    channel.peer.close()
    await until(lambda: bool(channel.failures))
    channel.notifier.notify()
    await asyncio.sleep(0)
    assert channel.failures == ["closed by the front-end"]


@pytest.mark.parametrize(
    "data",
    [
        pack_message(BackendRequest.CONFIG_CHANGE, U64Payload(0).pack(), REPLY_FLAGS),
        pack_message(BackendRequest.CONFIG_CHANGE, b"", REPLY_FLAGS),
        bytes(64),
        b"\xff" * 64,
    ],
)
async def test_what_nobody_asked_for_ends_the_channel(channel: Channel, data: bytes) -> None:
    channel.peer.send(data)
    await until(lambda: len(channel.failures) == 1)

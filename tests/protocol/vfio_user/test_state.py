"""A connection that is saved between two messages, and restored elsewhere, goes on alike."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ballast_protocol.errors import BallastError, InternalError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.capabilities import Capabilities
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.message import DmaAccess
from ballast_protocol.vfio_user.state import ConnectionState
from support.vfio_messages import (
    DEVICE,
    REFUSED,
    SERVED,
    dma_map,
    dma_unmap,
    feed,
    finish,
    hello,
    negotiated,
    receive,
)

PAGE = 4096


def successor(connection: ServerConnection) -> ServerConnection:
    """Return what a new process makes of what the old one left, which is nothing but text."""
    saved = connection.save()
    assert saved is not None
    text = json.dumps(saved.to_values())
    state = ConnectionState.from_values(json.loads(text))
    assert state == saved
    return ServerConnection(DEVICE, state=state)


def test_before_the_first_message_there_is_nothing_to_save() -> None:
    assert ServerConnection(DEVICE).save() is None


def test_what_was_agreed_on_survives() -> None:
    connection = ServerConnection(DEVICE, Capabilities(max_dma_maps=2, max_msg_fds=3))
    finish(connection, feed(connection, Command.VERSION, hello()))
    after = successor(connection)
    assert after.client == connection.client
    assert after.limits == connection.limits
    for number in range(3):
        request = feed(after, Command.DMA_MAP, dma_map(number * PAGE, PAGE))
        assert isinstance(request.event, events.Refused) is (number == 2)
        finish(after, request)


def test_our_own_commands_are_still_waited_for() -> None:
    connection = negotiated()
    finish(connection, feed(connection, Command.DMA_MAP, dma_map(0, PAGE)))
    sent = connection.dma_read(0, 4)
    after = successor(connection)
    again = after.dma_read(0, 4)
    assert again.command_id != sent.command_id
    answer = DmaAccess(0, 4).pack() + b"ring"
    for command in (sent, again):
        found = receive(
            after, Command.DMA_READ, answer, 0, HeaderFlag.REPLY, message_id=command.command_id
        )
        assert found == events.DmaReadDone(command.command_id, 0, b"ring")
    assert successor(after).dma_layout is after.dma_layout


def test_only_between_two_messages() -> None:
    connection = negotiated()
    request = feed(connection, Command.DEVICE_RESET)
    with pytest.raises(InternalError, match="between two messages"):
        connection.save()
    connection.ack(request)
    connection.receive(b"\1\0\2\0" + b"\x30\0\0\0" + bytes(8), 1)
    assert connection.mid_message
    with pytest.raises(InternalError, match="between two messages"):
        connection.save()


@pytest.mark.parametrize(
    "change",
    [{"client": {}, "limits": None}, {"layout": "ROUND"}, {"maps": [[1, 2]]}, {"commands": [7]}],
)
def test_other_values_are_refused(change: dict[str, object]) -> None:
    saved = negotiated().save()
    assert saved is not None
    with pytest.raises(InternalError, match="no saved connection"):
        ConnectionState.from_values({**saved.to_values(), **change})
    with pytest.raises(InternalError, match="no saved connection"):
        ConnectionState.from_values({})


PAGES = st.integers(0, 12)


class Twins(RuleBasedStateMachine):
    """One connection goes on for good, the other is replaced now and then: nobody can tell."""

    @initialize()
    def connect(self) -> None:
        self.elder, self.younger = negotiated(), negotiated()

    @rule()
    def replace(self) -> None:
        self.younger = successor(self.younger)

    def both(self, command: int, payload: bytes, fds: int = 0) -> None:
        answers = [
            (request.event, finish(each, request))
            for each in (self.elder, self.younger)
            for request in [feed(each, command, payload, fds)]
        ]
        assert answers[0] == answers[1]

    @rule(example=st.sampled_from([row[:3] for row in SERVED] + [(*row[:2], 0) for row in REFUSED]))
    def serve(self, example: tuple[Command, bytes, int]) -> None:
        self.both(*example)

    @rule(first=PAGES, count=st.integers(1, 4))
    def map(self, first: int, count: int) -> None:
        self.both(Command.DMA_MAP, dma_map(first * PAGE, count * PAGE), 1)

    @rule(first=PAGES, count=st.integers(1, 4))
    def unmap(self, first: int, count: int) -> None:
        self.both(Command.DMA_UNMAP, dma_unmap(first * PAGE, count * PAGE))

    @rule(first=PAGES)
    def read_memory(self, first: int) -> None:
        sent = [attempt(each, first * PAGE) for each in (self.elder, self.younger)]
        assert sent[0] == sent[1]


def attempt(connection: ServerConnection, address: int) -> object:
    """Return a command, or why there can be none."""
    try:
        return connection.dma_read(address, 4)
    except BallastError as error:
        return str(error)


TestTwins = Twins.TestCase

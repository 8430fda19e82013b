"""The table itself: complete, and within bounds."""

from __future__ import annotations

import pytest

from ballast_protocol.errors import PeerError
from ballast_protocol.vfio_user.codes import Command
from ballast_protocol.vfio_user.events import RefusalError
from ballast_protocol.vfio_user.message import MAX_FDS
from ballast_protocol.vfio_user.rules import MAX_CONTROL_SIZE, RULES, UNKNOWN, Reply, decode
from support.vfio_messages import REFUSED, SERVED


def test_every_command_has_a_rule() -> None:
    assert RULES.keys() == set(Command)


@pytest.mark.parametrize("command", Command, ids=lambda item: item.name)
def test_rule_is_within_bounds(command: Command) -> None:
    rule = RULES[command]
    least, most = rule.sizes
    assert least <= (MAX_CONTROL_SIZE if most is None else most) <= MAX_CONTROL_SIZE
    assert 0 <= rule.fds <= MAX_FDS
    assert 0 <= rule.echo <= least


def test_what_is_never_served_is_always_refused() -> None:
    never = {command for command, rule in RULES.items() if rule.reply is Reply.NEVER}
    assert never == {row[0] for row in REFUSED} - {Command.VERSION}
    assert not never & {row[0] for row in SERVED}


def test_unknown_commands_may_have_any_payload_and_descriptors() -> None:
    with pytest.raises(RefusalError, match="no such command"):
        decode(77, bytes(5000), MAX_FDS)
    assert UNKNOWN.reply is Reply.NEVER


def test_decoding_is_bounded_by_the_rule() -> None:
    with pytest.raises(PeerError, match="a payload of 31 bytes, not 32 to 32"):
        decode(Command.DMA_MAP, bytes(31), 0)
    with pytest.raises(PeerError, match="2 file descriptors came, 1 are the most"):
        decode(Command.DMA_MAP, bytes(32), 2)

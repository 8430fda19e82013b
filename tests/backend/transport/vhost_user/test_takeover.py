"""What a successor refuses, and what it leaves as it was then."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.state.file import StateFile
from ballast.streams.fdstore import MemoryStore, VmStore
from ballast.transport.vhost_user.notifier import NotifierCounts
from ballast.transport.vhost_user.session import Session
from ballast_protocol.errors import StateError
from support.backend import Listener
from support.driver import GuestRam, RamBlock
from support.fds import none_left_open
from support.frontend import Frontend
from support.machine import RAM_BYTES, plugged_in


@dataclass
class Left:
    """What a predecessor left: it runs on, but nobody listens to it."""

    store: MemoryStore
    state: StateFile
    sock: socket.socket

    def take_over(self) -> Session:
        """Be the successor."""
        part, sock = VmStore(self.store, "vm", self.store.take_all()), self.sock.dup()
        try:
            return Session(
                sock,
                BalloonDevice(Listener()),
                ended=lambda reason: None,
                counts=NotifierCounts(),
                store=part,
                state=self.state,
            )
        except StateError:
            sock.close()
            raise
        finally:
            part.freeze()
            part.drop_rest()


@pytest.fixture
async def left() -> AsyncIterator[Left]:
    ours, theirs = socket.socketpair()
    with GuestRam.of(RamBlock(0, RAM_BYTES)) as ram, MemoryStore() as store:
        state = StateFile.create()
        copy = theirs.dup()
        first = Session(
            theirs,
            BalloonDevice(Listener()),
            ended=lambda reason: None,
            counts=NotifierCounts(),
            store=VmStore(store, "vm", {}),
            state=state,
        )
        async with Frontend(ours) as frontend:
            machine = await plugged_in(frontend, ram)
            await machine.start()
            await machine.config()
            yield Left(store, state, copy)
        first.close()
        assert not store.held
        copy.close()
        state.close()


def names(store: MemoryStore) -> set[str]:
    return {name.removeprefix("vm/") for name in store.held}


async def test_every_descriptor_is_stored(left: Left) -> None:
    rings = {f"{what}.{index}" for what in ("kick", "call", "err") for index in range(4)}
    assert names(left.store) >= rings | {"outbox", "memory.0", "channel.1", "channel-outbox.1"}


@pytest.mark.parametrize("what", ["outbox", "memory.0", "kick.1", "channel.1", "channel-outbox.1"])
async def test_without_a_descriptor_nothing_is_taken_over_and_nothing_changed(
    left: Left, what: str
) -> None:
    left.store.drop(f"vm/{what}")
    before = names(left.store)
    with none_left_open(), pytest.raises(StateError, match=f"missing: {what}"):
        left.take_over()
    assert names(left.store) == before


async def test_memory_that_is_not_what_it_was_is_refused(left: Left) -> None:
    other = os.memfd_create("other")
    left.store.put("vm/memory.0", other)
    os.close(other)
    with none_left_open(), pytest.raises(StateError, match="memory cannot be taken over"):
        left.take_over()


async def test_damaged_state_is_refused(left: Left) -> None:
    record = left.state.record("vhost-user")
    record.save((record.load() or b"")[:-1])
    with none_left_open(), pytest.raises(StateError, match="makes no sense"):
        left.take_over()

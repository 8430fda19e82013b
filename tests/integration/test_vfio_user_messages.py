"""How many messages a vfio-user session takes, and in which order."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.memory.map import Piece
from ballast.memory.reclaim import discard
from ballast.transport.vfio_user.memory import DmaMemory
from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import Command as Message
from ballast_protocol.vfio_user.codes import HeaderFlag
from ballast_protocol.vfio_user.message import Header as MessageHeader
from ballast_protocol.virtio.balloon import BalloonQueue
from ballast_protocol.virtio.pci.structures import StructureType
from support.backend import until
from support.fds import none_left_open
from support.machine import FREE
from support.vfio_link import RefusedCommandError
from support.vfio_machine import (
    VfioBackend,
    VfioMachine,
    vfio_backend_at,
    vfio_machine_at,
)


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VfioBackend]:
    with none_left_open():
        async with vfio_backend_at(tmp_path / "s", request.param) as backend:
            yield backend


@pytest.fixture
async def machine(backend: VfioBackend) -> AsyncIterator[VfioMachine]:
    async with vfio_machine_at(backend.path) as machine:
        yield machine


async def test_at_most_three_messages_an_inflate_buffer(
    backend: VfioBackend, machine: VfioMachine
) -> None:
    """Reading num_pages, notifying, writing actual; INTx adds its two, which have no bound."""
    await machine.start()
    sent = machine.client.messages
    before = sent.copy()
    for number in range(8):
        assert await machine.read(StructureType.DEVICE, 0, 4) == 0
        await machine.inflate(*FREE[32 * number : 32 * number + 32])
        await machine.set_actual(32 * (number + 1))
    await until(lambda: backend.held == set(FREE[:256]))
    counts = {name: count - before.get(name, 0) for name, count in sent.items()}
    if machine.client.mapped:
        assert counts[Message.REGION_WRITE] == 8
        assert counts[Message.REGION_READ] == 0
    elif machine.client.msix_size:
        assert counts[Message.REGION_WRITE] == 16
        assert counts[Message.REGION_READ] == 8
    else:
        assert counts[Message.REGION_WRITE] == 16
        assert counts[Message.REGION_READ] == 16
        assert counts[Message.DEVICE_SET_IRQS] == 8
    if machine.client.msix_size:
        assert sum(counts.values()) <= 3 * 8


async def test_the_reply_to_a_notification_precedes_the_work(tmp_path: Path) -> None:
    """As the first page is given back, the answer is on its way already, unread."""
    waiting: list[MessageHeader] = []
    machines: list[VfioMachine] = []

    def look(piece: Piece) -> int:
        data = machines[0].client.socket.recv(MessageHeader.SIZE, socket.MSG_PEEK)
        waiting.append(MessageHeader.unpack(data))
        return discard(piece)

    async with (
        vfio_backend_at(tmp_path / "s", discard_piece=look) as backend,
        vfio_machine_at(backend.path) as machine,
    ):
        await machine.start()
        machines.append(machine)
        await machine.inflate(FREE[0])
    (found,) = waiting
    assert (found.command, int(found.flags)) == (Message.REGION_WRITE, HeaderFlag.REPLY)


# Answers even so


def fail(*_: object) -> None:
    raise RuntimeError("a bug")


async def test_a_bug_of_ours_after_the_answer_costs_nothing_else(
    backend: VfioBackend, machine: VfioMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.start()
    with monkeypatch.context() as patch:
        patch.setattr(backend.device, "process", fail)
        for _ in range(100):  # more than may ever wait to be answered
            await machine.ring(BalloonQueue.INFLATE)
        await machine.settled()
    await machine.inflate(FREE[0])
    assert backend.held == {FREE[0]}


async def test_a_bug_of_ours_before_the_answer_is_an_answer(
    machine: VfioMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.start()
    with monkeypatch.context() as patch:
        patch.setattr(DmaMemory, "add", fail)
        patch.setattr(DmaMemory, "remove", fail)
        whole = list(machine.client.ranges)
        await machine.client.unmap(*whole)  # cannot be refused
        with pytest.raises(RefusedCommandError):
            await machine.client.map(*whole)
    await machine.settled()

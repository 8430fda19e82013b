from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from ballast.streams.fds import FdSet
from ballast.streams.fdstore import no_store
from ballast.transport.kept import KeptFds
from ballast.transport.vfio_user.irqs import Irqs, SavedIrqs
from ballast.virtio_pci.effects import Intx, Vector
from ballast_protocol.errors import MalformedError, StateError
from ballast_protocol.vfio_user.codes import PciIrq
from ballast_protocol.vfio_user.events import ActOnIrqs, IrqAction, SetIrqEventfds
from support.backend import until
from support.fds import memory_file, none_left_open
from support.stores import processes

TRIGGER, UNMASK = IrqAction.TRIGGER, IrqAction.UNMASK
MSIX, INTX = PciIrq.MSIX, PciIrq.INTX


class Bench:
    def __init__(self) -> None:
        self.unmasked = 0
        self.irqs = Irqs(KeptFds(no_store()), self._count)

    def _count(self) -> None:
        self.unmasked += 1

    def set(self, index: int, start: int, fds: list[int], action: IrqAction = TRIGGER) -> None:
        """Hand eventfds over, which stay with the test too."""
        event = SetIrqEventfds(index, start, len(fds), action, has_fds=True)
        with FdSet(os.dup(fd) for fd in fds) as given:
            self.irqs.set(event, given)

    def unset(self, index: int, start: int, action: IrqAction = TRIGGER) -> None:
        with FdSet() as none:
            self.irqs.set(SetIrqEventfds(index, start, 1, action, has_fds=False), none)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def raised(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


async def test_vectors_are_set_replaced_and_removed(bench: Bench, eventfds: list[int]) -> None:
    with none_left_open():
        bench.set(MSIX, 1, eventfds[:2])
        bench.irqs.raise_(Vector(0))
        bench.irqs.raise_(Vector(2))
        assert [raised(fd) for fd in eventfds] == [0, 1, 0]
        bench.set(MSIX, 2, [eventfds[2]])
        bench.irqs.raise_(Vector(2))
        assert [raised(fd) for fd in eventfds] == [0, 0, 1]
        bench.unset(MSIX, 2)
        bench.irqs.raise_(Vector(2))
        bench.irqs.raise_(Vector(1))
        assert [raised(fd) for fd in eventfds] == [1, 0, 0]
        bench.irqs.disable(MSIX)
        bench.irqs.raise_(Vector(1))
        assert [raised(fd) for fd in eventfds] == [0, 0, 0]


async def test_intx_is_apart_from_vectors(bench: Bench, eventfds: list[int]) -> None:
    with none_left_open():
        bench.set(MSIX, 0, [eventfds[0]])
        bench.set(INTX, 0, [eventfds[1]])
        bench.irqs.raise_(Intx())
        bench.irqs.raise_(None)
        assert [raised(fd) for fd in eventfds] == [0, 1, 0]
        bench.irqs.disable(INTX)
        bench.irqs.raise_(Intx())
        bench.irqs.raise_(Vector(0))
        assert [raised(fd) for fd in eventfds] == [1, 0, 0]
        bench.irqs.close()


async def test_the_client_can_raise_them_itself(bench: Bench, eventfds: list[int]) -> None:
    bench.set(MSIX, 0, eventfds)
    bench.irqs.act(ActOnIrqs(MSIX, 0, 3, TRIGGER, (True, False, True)))
    assert [raised(fd) for fd in eventfds] == [1, 0, 1]
    bench.irqs.act(ActOnIrqs(INTX, 0, 1, IrqAction.MASK))
    assert bench.unmasked == 0
    bench.irqs.act(ActOnIrqs(INTX, 0, 1, UNMASK))
    assert bench.unmasked == 1
    bench.irqs.close()


async def test_an_unmask_eventfd(bench: Bench, eventfds: list[int]) -> None:
    with none_left_open():
        bench.set(INTX, 0, [eventfds[0]], UNMASK)
        os.eventfd_write(eventfds[0], 1)
        for _ in range(3):
            await asyncio.sleep(0)
        assert bench.unmasked == 1
        bench.unset(INTX, 0, UNMASK)
        os.eventfd_write(eventfds[0], 1)
        for _ in range(3):
            await asyncio.sleep(0)
        assert bench.unmasked == 1
        bench.set(INTX, 0, [eventfds[1]], UNMASK)
        bench.irqs.disable(INTX)


async def test_an_unmask_descriptor_that_cannot_be_waited_for(bench: Bench) -> None:
    fd = memory_file(8)
    with none_left_open(), pytest.raises(MalformedError):
        bench.set(INTX, 0, [fd], UNMASK)
    os.close(fd)


# A successor


async def test_a_successor_raises_the_same_interrupts(eventfds: list[int]) -> None:
    with processes() as store:
        kept = KeptFds(store.part())
        before = Irqs(kept, lambda: None)
        give(before, MSIX, 0, eventfds)
        give(before, INTX, 0, eventfds[:1], UNMASK)
        assert store.held == {"irq.2.0", "irq.2.1", "irq.2.2", "irq.unmask"}
        before.disable(MSIX)
        give(before, MSIX, 1, eventfds[1:])
        kept.settle()
        assert store.held == {"irq.2.1", "irq.2.2", "irq.unmask"}
        saved = before.save()
        before.close()

        unmasked = []
        after = Irqs(KeptFds(store.part()), lambda: unmasked.append(1))
        after.restore(saved)
        assert after.save() == saved
        after.raise_(Vector(2))
        after.raise_(Vector(0))
        assert [raised(fd) for fd in eventfds] == [0, 0, 1]
        os.eventfd_write(eventfds[0], 1)
        await until(lambda: unmasked == [1])
        after.close()


async def test_an_interrupt_that_is_missing_is_told_of() -> None:
    with processes() as store:
        irqs = Irqs(KeptFds(store.part()), lambda: None)
        with pytest.raises(StateError, match=r"irq\.2\.5"):
            irqs.restore(SavedIrqs(((2, 5),)))
        irqs.close()


def give(irqs: Irqs, index: int, start: int, fds: list[int], action: IrqAction = TRIGGER) -> None:
    with FdSet(os.dup(fd) for fd in fds) as given:
        irqs.set(SetIrqEventfds(index, start, len(fds), action, has_fds=True), given)

"""The eventfds with which the function interrupts the guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ballast.streams.eventfd import CallFd, KickFd
from ballast.streams.fds import FdSet
from ballast.transport.kept import KeptFds
from ballast.virtio_pci.effects import Interrupt, Vector
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import PciIrq

_UNMASK = "irq.unmask"


@dataclass(frozen=True, slots=True)
class SavedIrqs:
    """Which eventfds there are.

    Attributes:
        triggers: Type and number of each interrupt that can be raised.
        has_unmask: Whether the client tells by an eventfd that it has unmasked INTx.
    """

    triggers: tuple[tuple[int, int], ...] = ()
    has_unmask: bool = False


class Irqs:
    """Owns what SET_IRQS has passed: an eventfd for each interrupt, by type and number."""

    def __init__(self, kept: KeptFds, unmasked: Callable[[], None]) -> None:
        """Begin without any.

        Args:
            kept: Where they are kept for a successor.
            unmasked: Called when the client unmasks INTx, which must then be raised again if it is
                still due.
        """
        self._kept = kept
        self._unmasked = unmasked
        self._triggers: dict[tuple[int, int], CallFd] = {}
        self._unmask: KickFd | None = None

    def set(self, event: events.SetIrqEventfds, fds: FdSet) -> None:
        """Take eventfds, or drop those that were there if none came.

        Raises:
            MalformedError: An unmask eventfd cannot be waited for.
        """
        if event.action is events.IrqAction.TRIGGER:
            for number in range(event.start, event.start + event.count):
                self._drop((event.index, number))
                if event.has_fds:
                    self._take((event.index, number), fds.steal())
        elif event.action is events.IrqAction.UNMASK and event.index == PciIrq.INTX:
            self._drop_unmask()
            if event.has_fds:
                self._unmask = KickFd(fds.peek(), self._unmasked)
                self._kept.put(_UNMASK, fds.steal())

    def _take(self, key: tuple[int, int], fd: int) -> None:
        self._triggers[key] = CallFd(fd)
        self._kept.put(_name(key), fd)

    def act(self, event: events.ActOnIrqs) -> None:
        """Do at once what the client asks for: raise interrupts, or hear that INTx is unmasked."""
        if event.action is events.IrqAction.TRIGGER:
            for number in event.vectors:
                self._signal((event.index, number))
        elif event.action is events.IrqAction.UNMASK and event.index == PciIrq.INTX:
            self._unmasked()

    def disable(self, index: int) -> None:
        """Drop every eventfd of one interrupt type."""
        for key in [key for key in self._triggers if key[0] == index]:
            self._drop(key)
        if index == PciIrq.INTX:
            self._drop_unmask()

    def raise_(self, interrupt: Interrupt | None) -> None:
        """Interrupt the guest; None and an interrupt that nobody listens to are dropped."""
        if isinstance(interrupt, Vector):
            self._signal((PciIrq.MSIX, interrupt.number))
        elif interrupt is not None:
            self._signal((PciIrq.INTX, 0))

    def _signal(self, key: tuple[int, int]) -> None:
        trigger = self._triggers.get(key)
        if trigger is not None:
            trigger.signal()

    def _drop(self, key: tuple[int, int]) -> None:
        trigger = self._triggers.pop(key, None)
        if trigger is not None:
            trigger.close()
            self._kept.drop(_name(key))

    def _drop_unmask(self) -> None:
        if self._unmask is not None:
            self._unmask.close()
            self._unmask = None
            self._kept.drop(_UNMASK)

    def save(self) -> SavedIrqs:
        """Return what there is, for a successor."""
        return SavedIrqs(tuple(self._triggers), self._unmask is not None)

    def restore(self, saved: SavedIrqs) -> None:
        """Take over what a predecessor had, in place of none.

        Raises:
            StateError: An eventfd is missing.
        """
        for index, number in saved.triggers:
            self._triggers[index, number] = CallFd(self._kept.take(_name((index, number))))
        if saved.has_unmask:
            self._unmask = KickFd(self._kept.take(_UNMASK), self._unmasked)

    def close(self) -> None:
        """Close everything."""
        for key in list(self._triggers):
            self._drop(key)
        self._drop_unmask()


def _name(key: tuple[int, int]) -> str:
    index, number = key
    return f"irq.{index}.{number}"

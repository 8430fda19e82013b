"""The eventfds with which the function interrupts the guest."""

from __future__ import annotations

from collections.abc import Callable

from ballast.streams.eventfd import CallFd, KickFd
from ballast.streams.fds import FdSet
from ballast.virtio_pci.effects import Interrupt, Vector
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.message import PciIrq


class Irqs:
    """Owns what SET_IRQS has passed: an eventfd for each interrupt, by type and number."""

    def __init__(self, unmasked: Callable[[], None]) -> None:
        """Begin without any.

        Args:
            unmasked: Called when the client unmasks INTx, which must then be raised again if it is
                still due.
        """
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
                    self._triggers[event.index, number] = CallFd(fds.steal())
        elif event.action is events.IrqAction.UNMASK and event.index == PciIrq.INTX:
            self._drop_unmask()
            if event.has_fds:
                self._unmask = KickFd(fds.peek(), self._unmasked)
                fds.steal()

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

    def _drop_unmask(self) -> None:
        if self._unmask is not None:
            self._unmask.close()
            self._unmask = None

    def close(self) -> None:
        """Close everything."""
        for key in list(self._triggers):
            self._drop(key)
        self._drop_unmask()

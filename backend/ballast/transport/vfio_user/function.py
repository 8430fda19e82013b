"""The PCI function of one session at work: its registers, queues, interrupts and config page.

What the guest does comes in as reads and writes of regions, or as the client's orders about it;
what follows from it is done here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ballast.balloon.device import BalloonDevice
from ballast.memory.map import MemoryMap
from ballast.queue.state import QueueState
from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.kept import KeptFds
from ballast.transport.vfio_user.config import ConfigSharing
from ballast.transport.vfio_user.irqs import Irqs, SavedIrqs
from ballast.transport.vfio_user.model import BalloonModel
from ballast.transport.vfio_user.probe import SavedProbe, SharingProbe
from ballast.transport.vfio_user.queues import Queues
from ballast.virtio_pci import effects as pci
from ballast.virtio_pci.device import VirtioPci
from ballast.virtio_pci.layout import Layout, Variant, make_layout
from ballast.virtio_pci.state import VirtioPciState
from ballast_protocol.errors import InternalError, StateError
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.events import RegionWrite

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavedFunction:
    """A function between two messages.

    Attributes:
        variant: How interrupts and config reads reach the guest.
        registers: `VirtioPciState.pack`, in hexadecimal.
        whole_bytes: How much memory there is when all of it is there.
        irqs: Which interrupts can be raised.
        probe: Whether memory was found to be shared.
    """

    variant: str
    registers: str
    whole_bytes: int = 0
    irqs: SavedIrqs = field(default_factory=SavedIrqs)
    probe: SavedProbe = field(default_factory=SavedProbe)


class Function:
    """A balloon as a PCI function.

    Attributes:
        variant: How interrupts and config reads reach the guest.
        layout: Its regions.
        irqs: Its interrupts.
        queues: Its queues.
        config: Its device configuration, which may be a page that the guest has mapped.
        probe: Whether the guest's memory is really shared.
    """

    def __init__(
        self,
        device: BalloonDevice,
        variant: Variant,
        kept: KeptFds,
        *,
        saved: SavedFunction | None,
        changed: Callable[[], None],
    ) -> None:
        """Make the function; `attach` and, for a successor, `resume` complete it.

        Args:
            device: What is behind it.
            variant: How interrupts and config reads reach the guest, unless a predecessor has
                decided that.
            kept: Where descriptors are kept for a successor.
            saved: What a predecessor left.
            changed: Told when something has changed that is not due to a message.

        Raises:
            StateError: What a predecessor left cannot be used.
        """
        self._device = device
        self._changed = changed
        self._saved = saved
        model = BalloonModel(device)
        self.variant = variant if saved is None else Variant(saved.variant)
        self.layout = make_layout(
            self.variant,
            queue_count=model.queue_count,
            config_size=model.config_size,
            has_function_reset=True,
        )
        self._pci = VirtioPci(model, self.layout)
        if saved is not None:
            self._pci = _restored(model, self.layout, saved.registers)
        self.irqs = Irqs(kept, self._unmasked)
        self.queues = Queues(
            device,
            may_run=lambda: self._pci.is_running,
            interrupt=self._interrupt_queue,
            broke=self._queue_broke,
        )
        self.config = ConfigSharing(device, self.layout, kept, is_resumed=saved is not None)

    def attach(self, connection: ServerConnection, send: Callable[[bytes], None]) -> None:
        """Get to know the connection, over which memory is probed."""
        state = SavedProbe() if self._saved is None else self._saved.probe
        self.probe = SharingProbe(connection, self.queues, send, state)

    # A successor -----------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Grows whenever registers change."""
        return self._pci.revision

    def save(self) -> SavedFunction:
        """Return what a successor needs."""
        return SavedFunction(
            self.variant.value,
            self._pci.save().pack().hex(),
            self.queues.whole_bytes,
            self.irqs.save(),
            self.probe.state,
        )

    def resume(self, memory: MemoryMap) -> None:
        """Go on in a predecessor's place: look at every queue, and tell the driver to look too.

        Raises:
            StateError: An interrupt's descriptor is missing.
        """
        saved, self._saved = self._saved, None
        assert saved is not None
        self.irqs.restore(saved.irqs)
        states = self._queue_states() if self._device.is_running else {}
        self.queues.resume(states, memory, saved.whole_bytes)
        # What the predecessor had still to tell is not known: hearing it twice does no harm.
        for index in states:
            self._interrupt_queue(index)
        self.config.take()
        self.config.watch()
        self.notify_config()

    # What the guest does ---------------------------------------------------------------------

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Return what a read of a region gives."""
        return self._pci.read(region, offset, count)

    def write(self, writes: Sequence[RegionWrite]) -> None:
        """Take writes to regions, and do what follows."""
        if len(writes) == 1:
            only = writes[0]
            notified = self._pci.notified_queue(only.region, only.offset, len(only.data))
            if notified is not None:
                self._notified(notified)
                return
        effects: pci.Effects = ()
        for write in writes:
            self.config.written(write.region, write.offset, write.data)
            caused = self._pci.write(write.region, write.offset, write.data)
            # What came before a reset must not be done after it.
            is_reset = any(isinstance(effect, pci.DeviceReset) for effect in caused)
            effects = caused if is_reset else effects + caused
        self._carry_out(effects)

    def reset(self) -> None:
        """Reset the function, as the client orders it with the machine."""
        self._carry_out(self._pci.reset())

    def _carry_out(self, effects: pci.Effects) -> None:
        """Do what follows from the guest's accesses."""
        for effect in effects:
            match effect:
                case pci.DriverReady(features):
                    self._start(features)
                case pci.DeviceReset():
                    self._stop()
                case pci.QueueNotified(index):
                    self._notified(index)
                case pci.QueueEnabled(index) if self._device.is_running:
                    self._queue_enabled(index)
                case pci.BusMasterChanged(is_enabled) if is_enabled and self._pci.is_running:
                    self.queues.serve_all()
                case pci.IntxAsserted():
                    self.irqs.raise_(pci.Intx())
                case _:
                    log.debug("%r", effect)

    def _start(self, features: int) -> None:
        """A new driver is ready; it may have filled queues before it said so."""
        log.info("the driver starts, features %#x", features)
        self.probe.begin()
        self.config.driver_begins()
        self._device.start(features, fresh=True)
        self.config.show()
        self.queues.start(self._queue_states())

    def _queue_states(self) -> dict[int, QueueState]:
        """Return the queues as the driver has set them up."""
        found = {index: self._pci.queue_state(index) for index in range(BalloonModel.queue_count)}
        return {index: state for index, state in found.items() if state is not None}

    def _stop(self) -> None:
        """The device was reset, by the driver or with the machine."""
        self.queues.stop()
        self.probe.forget()
        self.config.driver_ends()
        if self._device.is_hinting:
            # Or the next driver takes the order of this round for one to itself.
            self._device.finish_hinting()
        if self._device.is_running:
            log.info("the driver is gone")
            self._device.stop()

    def _notified(self, index: int) -> None:
        self.config.take()
        self.queues.serve(index)
        self.config.watch()
        if self.probe.used(index):
            self._changed()

    def _queue_enabled(self, index: int) -> None:
        """A driver at work has set up one more queue."""
        state = self._pci.queue_state(index)
        if state is not None:
            self.queues.add(index, state)

    # Memory ----------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Hold no guest memory, so that it can change."""
        self.queues.let_go()

    def use(self, memory: MemoryMap) -> None:
        """Go on in memory that has changed."""
        self.queues.use(memory)
        self.config.show()

    # Interrupts ------------------------------------------------------------------------------

    def _queue_broke(self) -> None:
        """The device cannot go on with what the driver has done; only a reset helps."""
        self.irqs.raise_(self._pci.needs_reset())

    def _interrupt_queue(self, index: int) -> None:
        self.irqs.raise_(self._pci.interrupt_for_queue(index))

    def _unmasked(self) -> None:
        """The client has unmasked INTx: raise it again if there is still a reason."""
        if self._pci.is_intx_asserted:
            self.irqs.raise_(pci.Intx())

    def notify_config(self) -> None:
        """Have the guest read the config space again."""
        self.config.show()
        interrupt = self._pci.config_changed()
        self._changed()
        self.irqs.raise_(interrupt)

    # For operators ---------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """What keeps the balloon from working; empty if nothing does."""
        return NO_SHARED_MEMORY if self.probe.is_private else self.queues.problem

    def status(self) -> dict[str, object]:
        """Return what operators may want to know."""
        return {
            "running": self._device.is_running,
            "features": self._pci.features,
            "device-status": int(self._pci.status),
            "rings": self.queues.describe(),
            "ignored-writes": self._pci.ignored_writes,
        }

    def close(self) -> None:
        """Let go of queues, page and descriptors; memory can be closed then."""
        self.queues.close()
        self.config.close()
        self.irqs.close()


def _restored(model: BalloonModel, layout: Layout, registers: str) -> VirtioPci:
    """Return the function as a predecessor left it.

    Raises:
        StateError: It was another function.
    """
    try:
        state = VirtioPciState.unpack(bytes.fromhex(registers), layout.config_space_size)
        return VirtioPci(model, layout, state=state)
    except (InternalError, ValueError) as error:
        raise StateError(f"the saved PCI function cannot be used: {error}") from error

"""A virtio device as a PCI function: reads and writes of its regions, and its interrupts.

Nothing here raises on account of what a client or a guest does. Reads of what is not there give
zeros; writes that the specification forbids are ignored and counted.
"""

from __future__ import annotations

from copy import deepcopy

from ballast.queue.state import QueueState
from ballast.virtio_pci.config_space import ConfigSpace
from ballast.virtio_pci.effects import (
    NO_EFFECTS,
    BusMasterChanged,
    Effects,
    Interrupt,
    Intx,
    IntxAsserted,
    QueueNotified,
    Vector,
)
from ballast.virtio_pci.layout import CONFIG_REGION, NOTIFY_MULTIPLIER, Layout
from ballast.virtio_pci.model import DeviceModel
from ballast.virtio_pci.registers import CommonRegisters
from ballast.virtio_pci.state import VirtioPciState
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.config_space import Command, Header, PciStatus
from ballast_protocol.virtio.pci.structures import (
    CLASS_OTHER,
    NO_VECTOR,
    DeviceStatus,
    Isr,
    StructureFeature,
)

MAX_READ_BYTES = 1 << 20
"""The most bytes that one read returns: what vfio-user's clients agree to by default."""

_NATURAL_SIZES = (1, 2, 4)
_NOTIFICATION_SIZES = (2, 4)
"""A notification is the queue's index, with NOTIFICATION_DATA also its position."""

_READY = int(DeviceStatus.DRIVER_OK)
_READY_MASK = _READY | int(DeviceStatus.NEEDS_RESET)


class VirtioPci:
    """One PCI function with one virtio device behind it.

    Attributes:
        layout: Its regions.
        ignored_writes: How many writes broke the rules and had no effect.
        revision: Grows whenever something changes that `save` returns, and now and then besides.
    """

    def __init__(
        self,
        device: DeviceModel,
        layout: Layout,
        *,
        class_code: int = CLASS_OTHER,
        state: VirtioPciState | None = None,
    ) -> None:
        """Make the function.

        Args:
            device: The virtio device.
            layout: The regions, made for this device.
            class_code: The PCI class, sub-class and interface as a 24-bit number.
            state: What a predecessor saved; None to begin anew.

        Raises:
            InternalError: The device offers what cannot be, or the state is of another device.
        """
        _check_device(device)
        self.layout = layout
        self.ignored_writes = 0
        self.revision = 0
        self._device = device
        self._config = ConfigSpace(device.device_id, class_code, layout)
        if state is not None:
            self._config.restore(state.config_space)
        self._registers = CommonRegisters(
            device, layout.vectors, None if state is None else deepcopy(state.common)
        )

    # What is known of the driver -------------------------------------------------------------

    def save(self) -> VirtioPciState:
        """Return all that a successor needs, independent of this device."""
        config_space = self._config.read(0, self.layout.config_space_size)
        return VirtioPciState(deepcopy(self._registers.state), config_space)

    @property
    def status(self) -> DeviceStatus:
        """The device status."""
        return DeviceStatus(self._registers.state.status)

    @property
    def features(self) -> int:
        """What was negotiated; 0 before it was."""
        is_settled = DeviceStatus.FEATURES_OK in self.status
        return self._registers.state.driver_features if is_settled else 0

    @property
    def is_running(self) -> bool:
        """Whether queues may be served: a driver is ready, nothing is broken, DMA is allowed."""
        # Asked several times for each notification, so without making flags of the numbers.
        is_ready = self._registers.state.status & _READY_MASK == _READY
        return is_ready and self._config.is_bus_master

    def queue_state(self, index: int) -> QueueState | None:
        """Return a queue as the driver set it up, not yet used; None if it is not enabled.

        The addresses are what the driver wrote: they are yet to be found in its memory.
        """
        queues = self._registers.state.queues
        if index >= len(queues) or not queues[index].is_enabled:
            return None
        queue = queues[index]
        return QueueState(
            size=queue.size,
            desc_address=queue.desc_address,
            avail_address=queue.driver_address,
            used_address=queue.device_address,
            event_idx=bool(self.features & VirtioFeature.EVENT_IDX),
            indirect=bool(self.features & VirtioFeature.INDIRECT_DESC),
        )

    # Reads -----------------------------------------------------------------------------------

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Return what a client's read gives.

        Args:
            region: VFIO's index of the region.
            offset: Bytes from its start.
            size: Bytes wanted; no more than `MAX_READ_BYTES` are given.
        """
        size = max(0, min(size, MAX_READ_BYTES))
        if region == CONFIG_REGION:
            data = self._read_config_space(offset, size)
        else:
            data = self._read_bar(region, offset, size)
        return data[:size].ljust(size, b"\0")

    def _read_config_space(self, offset: int, size: int) -> bytes:
        config = self._config
        if config.is_window_access(offset, size):
            access = config.window_access()
            if access is not None:
                self.revision += 1
                config.put_window_data(self.read(access.bar, access.offset, access.length))
        data = bytearray(config.read(offset, size))
        place = Header.STATUS.offset - offset
        if 0 <= place < len(data) and self._has_intx:
            data[place] |= PciStatus.INTERRUPT
        return bytes(data)

    def _read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Read a structure, up to its end; the MSI-X table is in the client, ours reads zeros."""
        layout = self.layout
        if layout.common.holds(bar, offset):
            return self._registers.read(offset - layout.common.offset, size)
        if layout.device is not None and layout.device.holds(bar, offset):
            return self._read_device_config(offset - layout.device.offset, size)
        if layout.isr.holds(bar, offset) and offset == layout.isr.offset and size:
            return self._read_isr()
        return b""

    def _read_device_config(self, offset: int, size: int) -> bytes:
        """Read the device-specific configuration, which is newer than before if it had changed."""
        state = self._registers.state
        if state.is_config_stale:
            self.revision += 1
            state.is_config_stale = False
            state.generation = (state.generation + 1) % 256
        available = min(size, self._device.config_size - offset)
        return self._device.read_config(offset, available) if available > 0 else b""

    def _read_isr(self) -> bytes:
        """Read the ISR status, which clears it and thereby takes INTx back."""
        state = self._registers.state
        isr, state.isr = state.isr, 0
        self.revision += isr > 0
        return bytes((isr,))

    # Writes ----------------------------------------------------------------------------------

    def write(self, region: int, offset: int, data: bytes) -> Effects:
        """Take a client's write.

        Args:
            region: VFIO's index of the region.
            offset: Bytes from its start.
            data: What is written. In a BAR it has to be 1, 2, 4 or 8 bytes on their boundary.

        Returns:
            What the transport has to do about it, in this order.
        """
        if region == CONFIG_REGION:
            return self._write_config_space(offset, data)
        effects = NO_EFFECTS
        for start, piece in _natural_pieces(offset, data):
            effects += self._counted(self._write_bar(region, start, piece))
        return effects

    def _counted(self, effects: Effects | None) -> Effects:
        """Count a write that was ignored."""
        if effects is None:
            self.ignored_writes += 1
            return NO_EFFECTS
        return effects

    def _write_config_space(self, offset: int, data: bytes) -> Effects:
        config = self._config
        had_intx, was_master = self.is_intx_asserted, Command.BUS_MASTER in config.command
        self.revision += 1
        if not config.write(offset, data):
            return self._counted(None)
        if config.is_reset_wanted:
            return self.reset()
        effects = NO_EFFECTS
        is_master = Command.BUS_MASTER in config.command
        if is_master is not was_master:
            effects += (BusMasterChanged(is_master),)
        if config.is_window_access(offset, len(data)):
            effects += self._write_through_window()
        if self.is_intx_asserted and not had_intx:
            effects += (IntxAsserted(),)
        return effects

    def _write_through_window(self) -> Effects:
        access = self._config.window_access()
        if access is None:
            return self._counted(None)
        return self.write(access.bar, access.offset, self._config.window_data[: access.length])

    def _write_bar(self, bar: int, offset: int, data: bytes) -> Effects | None:
        """Take a write that has a natural size and alignment, so that it is in one structure."""
        layout = self.layout
        if not data:
            return None
        if layout.notify.holds(bar, offset):
            return self._write_notify(offset - layout.notify.offset, len(data))
        if layout.common.holds(bar, offset):
            self.revision += 1
            return self._registers.write(offset - layout.common.offset, data)
        if layout.device is not None and layout.device.holds(bar, offset):
            return self._write_device_config(offset - layout.device.offset, data)
        return None

    def notified_queue(self, region: int, offset: int, size: int) -> int | None:
        """Return the queue that a write notifies, if it does nothing else; None otherwise.

        It says no more than `write` would, but says it sooner: a kick is all that a guest at work
        sends.
        """
        notify = self.layout.notify
        if region != notify.bar or not 0 <= offset - notify.offset < notify.length:
            return None
        index = self._queue_at(offset - notify.offset, size)
        return index if index is not None and self._is_served(index) else None

    def _queue_at(self, offset: int, size: int) -> int | None:
        """Return the queue whose notification address this is; None if it is nobody's.

        The address says which queue it is, so that the data need not be believed.
        """
        index, remainder = divmod(offset, NOTIFY_MULTIPLIER)
        is_one = not remainder and index < len(self._registers.state.queues)
        return index if is_one and size in _NOTIFICATION_SIZES else None

    def _is_served(self, index: int) -> bool:
        return self.is_running and self._registers.state.queues[index].is_enabled

    def _write_notify(self, offset: int, size: int) -> Effects | None:
        """Pass a notification on; before the device runs there is nothing to be told."""
        index = self._queue_at(offset, size)
        if index is None:
            return None
        return (QueueNotified(index),) if self._is_served(index) else NO_EFFECTS

    def _write_device_config(self, offset: int, data: bytes) -> Effects | None:
        if offset + len(data) > self._device.config_size:
            return None
        self._device.write_config(offset, data)
        return NO_EFFECTS

    def reset(self) -> Effects:
        """Reset the whole function, configuration space included."""
        self.revision += 1
        self._config.reset()
        return self._registers.reset()

    # Interrupts ------------------------------------------------------------------------------

    @property
    def _has_intx(self) -> bool:
        """Whether there is a reason for INTx."""
        return bool(self._registers.state.isr) and not self._config.is_msix_enabled

    @property
    def is_intx_asserted(self) -> bool:
        """Whether INTx is due; after a client has unmasked it, signal it again if so."""
        return self._has_intx and Command.INTX_DISABLE not in self._config.command

    def interrupt_for_queue(self, index: int) -> Interrupt | None:
        """Return how to tell the driver of used buffers; None if it cannot or will not be told.

        Call it only if the driver wants to be told. The ISR status changes with it.
        """
        if not self.is_running or index >= len(self._registers.state.queues):
            return None
        return self._interrupt(Isr.QUEUE, self._registers.state.queues[index].vector)

    def config_changed(self) -> Interrupt | None:
        """The device configuration has changed: return how to tell the driver of it.

        Returns:
            None if it cannot or will not be told; one that is not there yet will read it anyway.
        """
        self.revision += 1
        state = self._registers.state
        if self.layout.mapped is None:
            state.is_config_stale = True
        else:
            # Nobody sees the driver read it, so every change counts.
            state.generation = (state.generation + 1) % 256
        return self._interrupt_for_config()

    def needs_reset(self) -> Interrupt | None:
        """Declare that the device cannot go on before the driver resets it (2.1.2).

        Returns:
            How to tell the driver; None if it cannot or will not be told.
        """
        self.revision += 1
        self._registers.state.status |= DeviceStatus.NEEDS_RESET
        return self._interrupt_for_config()

    def _interrupt_for_config(self) -> Interrupt | None:
        if DeviceStatus.DRIVER_OK not in self.status:
            return None
        return self._interrupt(Isr.CONFIG, self._registers.state.config_vector)

    def _interrupt(self, reason: Isr, vector: int) -> Interrupt | None:
        """Set the ISR status where it has to be, and return the interrupt.

        With MSI-X it is the vector that speaks; the ISR status then only tells config changes.
        """
        config = self._config
        is_msix = config.is_msix_enabled
        if reason is Isr.CONFIG or not is_msix:
            self.revision += 1
            self._registers.state.isr |= reason
        if is_msix:
            can_send = vector != NO_VECTOR and config.is_bus_master
            return Vector(vector) if can_send else None
        return Intx() if self.is_intx_asserted else None


def _check_device(device: DeviceModel) -> None:
    """Check what a device offers.

    Raises:
        InternalError: It offers what this transport cannot carry.
    """
    carried = ~sum(StructureFeature)
    if not device.features & VirtioFeature.VERSION_1 or device.features & ~carried:
        raise InternalError(f"features {device.features:#x} cannot be offered over PCI")
    size = device.queue_max_size
    if size <= 0 or size & (size - 1):
        raise InternalError(f"queues of {size} descriptors cannot be offered")


def _natural_pieces(offset: int, data: bytes) -> tuple[tuple[int, bytes], ...]:
    """Return the accesses that a write of a BAR consists of; an empty one for a forbidden write."""
    if len(data) == 8 and offset % 8 == 0:
        return (offset, data[:4]), (offset + 4, data[4:])
    if len(data) in _NATURAL_SIZES and offset % len(data) == 0:
        return ((offset, data),)
    return ((offset, b""),)

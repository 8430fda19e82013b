"""The common configuration structure (virtio 1.3, section 4.1.4.3): negotiation and queue setup.

The driver is untrusted. What it must not do is ignored, and `write` says so by returning None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ballast.virtio_pci.effects import (
    NO_EFFECTS,
    DeviceReset,
    DriverReady,
    Effects,
    QueueEnabled,
    QueueReset,
    StatusChanged,
)
from ballast.virtio_pci.model import DeviceModel
from ballast.virtio_pci.state import CommonState, QueueRegisters
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.structures import (
    COMMON_BY_PLACE,
    COMMON_SIZE,
    DRIVER_STATUS,
    NO_VECTOR,
    Common,
    DeviceStatus,
)

_FEATURE_WORDS = (0, 1)
"""What the feature selects may be: no feature bit is beyond 63."""

_LOW, _HIGH = 0, 32


class CommonRegisters:
    """The structure's registers over their state.

    Attributes:
        state: What the registers hold.
    """

    def __init__(self, device: DeviceModel, vectors: int, state: CommonState | None) -> None:
        """Make the registers.

        Args:
            device: The device behind them.
            vectors: How many MSI-X vectors there are.
            state: What a predecessor left; None to begin anew.

        Raises:
            InternalError: The predecessor's device was another one.
        """
        self._device = device
        self._vectors = vectors
        if state is not None:
            self._check(state)
        self.state = state or self._fresh()
        self._readers = self._make_readers()
        self._writers = self._make_writers()

    def _fresh(self) -> CommonState:
        return CommonState.fresh(self._device.queue_count, self._device.queue_max_size)

    def _check(self, state: CommonState) -> None:
        """Pass a state that these registers could have come to by themselves.

        Raises:
            InternalError: They could not.
        """
        if len(state.queues) != self._device.queue_count:
            raise InternalError("the saved state has another number of queues")
        if any(not self._is_queue_size(queue.size) for queue in state.queues):
            raise InternalError("the saved state has queues of a size that is not offered")
        vectors = (state.config_vector, *(queue.vector for queue in state.queues))
        if any(vector != self._usable(vector) for vector in vectors):
            raise InternalError("the saved state has more interrupts than the function")
        if (
            state.status & DeviceStatus.FEATURES_OK
            and state.driver_features & ~self._device.features
        ):
            raise InternalError("the driver works with features that are not offered any more")

    def reset(self) -> Effects:
        """Return to the state before any driver."""
        self.state = self._fresh()
        return (DeviceReset(),)

    # Accesses --------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the structure, which ends with zeros.

        A driver has to read each register by itself. Since reading has no effects, other reads get
        what they would from memory.
        """
        register = COMMON_BY_PLACE.get((offset, size))
        if register is not None:
            return self._value(register).to_bytes(size, "little")
        image = bytearray(COMMON_SIZE)
        for register in Common:
            register.put(image, self._value(register))
        return bytes(image[offset : offset + size])

    def _value(self, register: Common) -> int:
        reader = self._readers.get(register)
        return 0 if reader is None else reader()

    def write(self, offset: int, data: bytes) -> Effects | None:
        """Take a write of one whole register.

        Returns:
            What follows, or None if the write was ignored.
        """
        register = COMMON_BY_PLACE.get((offset, len(data)))
        writer = None if register is None else self._writers.get(register)
        return None if writer is None else writer(int.from_bytes(data, "little"))

    def _make_readers(self) -> dict[Common, Callable[[], int]]:
        """Return how each register is read; those that are missing read 0."""
        return {
            Common.DEVICE_FEATURE_SELECT: lambda: self.state.device_feature_select,
            Common.DEVICE_FEATURE: self._device_feature,
            Common.DRIVER_FEATURE_SELECT: lambda: self.state.driver_feature_select,
            Common.DRIVER_FEATURE: self._driver_feature,
            Common.CONFIG_MSIX_VECTOR: lambda: self.state.config_vector,
            Common.NUM_QUEUES: lambda: len(self.state.queues),
            Common.DEVICE_STATUS: lambda: self.state.status,
            Common.CONFIG_GENERATION: lambda: self.state.generation,
            Common.QUEUE_SELECT: lambda: self.state.queue_select,
            Common.QUEUE_SIZE: self._of_queue(lambda queue: queue.size, 0),
            Common.QUEUE_MSIX_VECTOR: self._of_queue(lambda queue: queue.vector, NO_VECTOR),
            Common.QUEUE_ENABLE: self._of_queue(lambda queue: int(queue.is_enabled), 0),
            Common.QUEUE_NOTIFY_OFF: self._notify_offset,
            Common.QUEUE_DESC_LOW: self._address_reader("desc_address", _LOW),
            Common.QUEUE_DESC_HIGH: self._address_reader("desc_address", _HIGH),
            Common.QUEUE_DRIVER_LOW: self._address_reader("driver_address", _LOW),
            Common.QUEUE_DRIVER_HIGH: self._address_reader("driver_address", _HIGH),
            Common.QUEUE_DEVICE_LOW: self._address_reader("device_address", _LOW),
            Common.QUEUE_DEVICE_HIGH: self._address_reader("device_address", _HIGH),
        }

    def _make_writers(self) -> dict[Common, Callable[[int], Effects | None]]:
        """Return how each register is written; those that are missing are read-only."""
        return {
            Common.DEVICE_FEATURE_SELECT: self._set("device_feature_select"),
            Common.DRIVER_FEATURE_SELECT: self._set("driver_feature_select"),
            Common.DRIVER_FEATURE: self._write_driver_feature,
            Common.CONFIG_MSIX_VECTOR: self._write_config_vector,
            Common.DEVICE_STATUS: self._write_status,
            Common.QUEUE_SELECT: self._set("queue_select"),
            Common.QUEUE_SIZE: self._write_queue_size,
            Common.QUEUE_MSIX_VECTOR: self._write_queue_vector,
            Common.QUEUE_ENABLE: self._write_queue_enable,
            Common.QUEUE_DESC_LOW: partial(self._write_address, "desc_address", _LOW),
            Common.QUEUE_DESC_HIGH: partial(self._write_address, "desc_address", _HIGH),
            Common.QUEUE_DRIVER_LOW: partial(self._write_address, "driver_address", _LOW),
            Common.QUEUE_DRIVER_HIGH: partial(self._write_address, "driver_address", _HIGH),
            Common.QUEUE_DEVICE_LOW: partial(self._write_address, "device_address", _LOW),
            Common.QUEUE_DEVICE_HIGH: partial(self._write_address, "device_address", _HIGH),
            Common.QUEUE_RESET: self._write_queue_reset,
        }

    def _set(self, name: str) -> Callable[[int], Effects]:
        """Return a writer that merely stores a register of `CommonState`."""

        def store(value: int) -> Effects:
            setattr(self.state, name, value)
            return NO_EFFECTS

        return store

    # Features and status ---------------------------------------------------------------------

    def _device_feature(self) -> int:
        word = self.state.device_feature_select
        return _word(self._device.features, word) if word in _FEATURE_WORDS else 0

    def _driver_feature(self) -> int:
        word = self.state.driver_feature_select
        return _word(self.state.driver_features, word) if word in _FEATURE_WORDS else 0

    def _write_driver_feature(self, value: int) -> Effects | None:
        """Remember what the driver accepts; once FEATURES_OK is set that cannot change."""
        word = self.state.driver_feature_select
        if word not in _FEATURE_WORDS or self.state.status & DeviceStatus.FEATURES_OK:
            return None
        self.state.driver_features = _with_half(self.state.driver_features, value, 32 * word)
        return NO_EFFECTS

    def _are_features_right(self) -> bool:
        accepted = self.state.driver_features
        return bool(accepted & VirtioFeature.VERSION_1) and not accepted & ~self._device.features

    def _write_status(self, value: int) -> Effects | None:
        """Reset on 0; otherwise set bits, since a driver may not clear one (2.1.1).

        FEATURES_OK does not stick if the device cannot work with what the driver accepted (2.2.2),
        nor does DRIVER_OK without it (3.1.1).
        """
        if value == 0:
            return self.reset()
        before = self.state.status
        status = before | value & DRIVER_STATUS
        if not before & DeviceStatus.FEATURES_OK and not self._are_features_right():
            status &= ~DeviceStatus.FEATURES_OK
        if not status & DeviceStatus.FEATURES_OK:
            status &= ~DeviceStatus.DRIVER_OK
        self.state.status = int(status)
        if status == before:
            return NO_EFFECTS
        changed: Effects = (StatusChanged(int(status)),)
        if status & ~before & DeviceStatus.DRIVER_OK:
            changed += (DriverReady(self.state.driver_features),)
        return changed

    # Queues ----------------------------------------------------------------------------------

    def _queue(self) -> QueueRegisters | None:
        """Return the selected queue's registers; None if there is no such queue."""
        index = self.state.queue_select
        return self.state.queues[index] if index < len(self.state.queues) else None

    def _queue_in_setup(self) -> QueueRegisters | None:
        """Return the selected queue's registers if the driver may still change them."""
        queue = self._queue()
        return None if queue is None or queue.is_enabled else queue

    def _of_queue(self, get: Callable[[QueueRegisters], int], absent: int) -> Callable[[], int]:
        def read() -> int:
            queue = self._queue()
            return absent if queue is None else get(queue)

        return read

    def _address_reader(self, name: str, shift: int) -> Callable[[], int]:
        return self._of_queue(lambda queue: getattr(queue, name) >> shift & 0xFFFF_FFFF, 0)

    def _notify_offset(self) -> int:
        """Each queue has a notification address of its own, in the order of the queues."""
        return 0 if self._queue() is None else self.state.queue_select

    def _write_address(self, name: str, shift: int, value: int) -> Effects | None:
        queue = self._queue_in_setup()
        if queue is None:
            return None
        setattr(queue, name, _with_half(getattr(queue, name), value, shift))
        return NO_EFFECTS

    def _is_queue_size(self, value: int) -> bool:
        is_power_of_two = value > 0 and not value & (value - 1)
        return is_power_of_two and value <= self._device.queue_max_size

    def _write_queue_size(self, value: int) -> Effects | None:
        queue = self._queue_in_setup()
        if queue is None or not self._is_queue_size(value):
            return None
        queue.size = value
        return NO_EFFECTS

    def _write_queue_enable(self, value: int) -> Effects | None:
        """Enable the queue. Only a reset disables it, and features must be settled first."""
        queue = self._queue_in_setup()
        if queue is None or value != 1 or not self.state.status & DeviceStatus.FEATURES_OK:
            return None
        queue.is_enabled = True
        return (QueueEnabled(self.state.queue_select),)

    def _write_queue_reset(self, value: int) -> Effects | None:
        """Reset one queue, which is done at once, so that the register always reads 0 (2.6.1)."""
        queue = self._queue()
        is_negotiated = self.state.driver_features & VirtioFeature.RING_RESET
        is_settled = self.state.status & DeviceStatus.FEATURES_OK
        if queue is None or value != 1 or not (is_negotiated and is_settled and queue.is_enabled):
            return None
        self.state.queues[self.state.queue_select] = QueueRegisters(self._device.queue_max_size)
        return (QueueReset(self.state.queue_select),)

    # MSI-X vectors ---------------------------------------------------------------------------

    def _usable(self, vector: int) -> int:
        """Return the vector, or `NO_VECTOR` for one that the table does not have."""
        return vector if vector < self._vectors else NO_VECTOR

    def _write_config_vector(self, value: int) -> Effects:
        self.state.config_vector = self._usable(value)
        return NO_EFFECTS

    def _write_queue_vector(self, value: int) -> Effects | None:
        queue = self._queue()
        if queue is None:
            return None
        queue.vector = self._usable(value)
        return NO_EFFECTS


def _word(bits: int, number: int) -> int:
    """Return the 32-bit word with this number."""
    return bits >> 32 * number & 0xFFFF_FFFF


def _with_half(whole: int, value: int, shift: int) -> int:
    """Return a 64-bit number with one of its halves replaced."""
    return whole & ~(0xFFFF_FFFF << shift) | value << shift

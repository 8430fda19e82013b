"""All that a virtio-pci device remembers: plain data that can be saved and handed on.

`VirtioPciState.pack` makes bytes of it, which whoever stores them has to protect and to version:
they carry neither a checksum nor a number of their layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.structures import NO_VECTOR

_HEAD = struct.Struct("<HH")
"""How many queues, and how many bytes of configuration space, there are."""

_COMMON = struct.Struct("<BQIIHHB?B")
"""The fields of `CommonState` behind the queues, in their order."""

_QUEUE = struct.Struct("<HH?QQQ")
"""The fields of `QueueRegisters` in their order."""


@dataclass
class QueueRegisters:
    """What the driver has set up for one queue.

    Attributes:
        size: Number of descriptors.
        vector: Its MSI-X vector, or `NO_VECTOR`.
        is_enabled: Whether the driver has enabled it.
        desc_address: Of the descriptor table.
        driver_address: Of the driver's ring.
        device_address: Of the device's ring.
    """

    size: int
    vector: int = NO_VECTOR
    is_enabled: bool = False
    desc_address: int = 0
    driver_address: int = 0
    device_address: int = 0


@dataclass
class CommonState:
    """What the common configuration structure and the ISR status hold.

    Attributes:
        queues: Each queue's registers.
        status: The device status.
        driver_features: What the driver accepts.
        device_feature_select: Which 32 bits `device_feature` shows.
        driver_feature_select: Which 32 bits `driver_feature` shows.
        queue_select: Which queue the queue registers speak of.
        config_vector: The MSI-X vector of config changes, or `NO_VECTOR`.
        generation: Of the device configuration, modulo 256.
        is_config_stale: Whether the device configuration has changed since the driver read it.
        isr: The ISR status.
    """

    queues: list[QueueRegisters]
    status: int = 0
    driver_features: int = 0
    device_feature_select: int = 0
    driver_feature_select: int = 0
    queue_select: int = 0
    config_vector: int = NO_VECTOR
    generation: int = 0
    is_config_stale: bool = False
    isr: int = 0

    @classmethod
    def fresh(cls, queue_count: int, queue_size: int) -> CommonState:
        """Return the state after a reset, when each queue has the largest size."""
        return cls([QueueRegisters(queue_size) for _ in range(queue_count)])


@dataclass
class VirtioPciState:
    """The whole device, for a successor to go on with.

    Attributes:
        common: The common configuration and the ISR status.
        config_space: The bytes of the configuration space.
    """

    common: CommonState
    config_space: bytes = field(repr=False)

    def pack(self) -> bytes:
        """Return it as bytes; zeros at the end of the configuration space are left out."""
        common, space = self.common, self.config_space.rstrip(b"\0")
        registers = _COMMON.pack(
            common.status,
            common.driver_features,
            common.device_feature_select,
            common.driver_feature_select,
            common.queue_select,
            common.config_vector,
            common.generation,
            common.is_config_stale,
            common.isr,
        )
        head = _HEAD.pack(len(common.queues), len(space))
        return b"".join((head, registers, *map(_pack_queue, common.queues), space))

    @classmethod
    def unpack(cls, data: bytes, config_space_size: int) -> VirtioPciState:
        """Return what `pack` has made bytes of.

        Args:
            data: The bytes.
            config_space_size: How long the configuration space is.

        Raises:
            InternalError: The bytes are not such a state, or that of another function.
        """
        queues_at = _HEAD.size + _COMMON.size
        queue_count, space_bytes = _HEAD.unpack_from(data) if len(data) >= queues_at else (0, 0)
        space_at = queues_at + queue_count * _QUEUE.size
        if len(data) != space_at + space_bytes or space_bytes > config_space_size:
            raise InternalError(f"{len(data)} bytes are not the saved state of this function")
        queues = [QueueRegisters(*each) for each in _QUEUE.iter_unpack(data[queues_at:space_at])]
        common = CommonState(queues, *_COMMON.unpack_from(data, _HEAD.size))
        return cls(common, data[space_at:].ljust(config_space_size, b"\0"))


def _pack_queue(queue: QueueRegisters) -> bytes:
    return _QUEUE.pack(
        queue.size,
        queue.vector,
        queue.is_enabled,
        queue.desc_address,
        queue.driver_address,
        queue.device_address,
    )

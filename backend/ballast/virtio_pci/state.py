"""All that a virtio-pci device remembers: plain data that can be saved and handed on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast_protocol.virtio.pci.structures import NO_VECTOR


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

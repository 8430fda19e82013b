"""What a virtio device has to offer to sit behind virtio-pci."""

from __future__ import annotations

from typing import Protocol


class DeviceModel(Protocol):
    """A virtio device of any type."""

    @property
    def device_id(self) -> int:
        """The virtio device type: 5 for the balloon."""

    @property
    def features(self) -> int:
        """The feature bits offered to the driver, VERSION_1 among them."""

    @property
    def queue_count(self) -> int:
        """How many queues there are at most, under any features."""

    @property
    def queue_max_size(self) -> int:
        """The most descriptors that a queue may have; a power of two."""

    @property
    def config_size(self) -> int:
        """Bytes of the device-specific configuration; 0 if there is none."""

    def read_config(self, offset: int, size: int) -> bytes:
        """Return bytes of the device-specific configuration, all of which it has."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what the driver wrote to bytes of the configuration, all of which it has."""

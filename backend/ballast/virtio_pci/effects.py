"""What follows from an access of the device: the effects for a transport to carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class StatusChanged:
    """The driver set bits of the device status.

    Attributes:
        status: The status now, which lacks what was refused.
    """

    status: int


@dataclass(frozen=True)
class DriverReady:
    """The driver set DRIVER_OK: it may have filled queues already, so look at all of them.

    Attributes:
        features: What was negotiated.
    """

    features: int


@dataclass(frozen=True)
class DeviceReset:
    """The device is as it was in the beginning: let go of every queue."""


@dataclass(frozen=True)
class QueueEnabled:
    """A queue may be used, at the latest from DRIVER_OK on.

    Attributes:
        index: Which one.
    """

    index: int


@dataclass(frozen=True)
class QueueReset:
    """One queue is as it was in the beginning: let go of it.

    Attributes:
        index: Which one.
    """

    index: int


@dataclass(frozen=True)
class QueueNotified:
    """The driver says that it put buffers into a queue of a running device.

    Attributes:
        index: Which one.
    """

    index: int


@dataclass(frozen=True)
class BusMasterChanged:
    """The function may, or may not any more, access the guest's memory.

    Attributes:
        is_enabled: Whether it may. If so, look at all queues: notifications may have been missed.
    """

    is_enabled: bool


@dataclass(frozen=True)
class IntxAsserted:
    """INTx was held back, has become possible, and is due: signal it."""


Effect: TypeAlias = (
    StatusChanged
    | DriverReady
    | DeviceReset
    | QueueEnabled
    | QueueReset
    | QueueNotified
    | BusMasterChanged
    | IntxAsserted
)

Effects: TypeAlias = tuple[Effect, ...]

NO_EFFECTS: Effects = ()


@dataclass(frozen=True)
class Vector:
    """An interrupt as an MSI-X message.

    Attributes:
        number: The entry of the MSI-X table.
    """

    number: int


@dataclass(frozen=True)
class Intx:
    """An interrupt as a level on the function's interrupt pin; reading the ISR status ends it."""


Interrupt: TypeAlias = Vector | Intx

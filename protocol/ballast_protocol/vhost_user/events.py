"""What a front-end has asked for, one value per request that a balloon can serve.

`has_fd`: a file descriptor came with the message and now belongs to whoever handles the event.
Where an event has no such field, the number of descriptors follows from the event itself:
`SetMemTable` has one per region, `AddMemRegion`, `SetLogFd`, `SetBackendReqFd` and
`SetDeviceStateFd` have one, all others have none to keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from ballast_protocol.vhost_user.message import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    ConfigFlag,
    MemoryRegion,
    MigrationPhase,
    ProtocolFeature,
    TransferDirection,
    VringAddrFlag,
)


@dataclass(frozen=True, slots=True)
class GetFeatures:
    """Which virtio features are offered. Also sent as a barrier; it changes nothing."""


@dataclass(frozen=True, slots=True)
class SetFeatures:
    """The features that the driver has accepted, with vhost-user's own two bits among them."""

    features: int

    @property
    def virtio_features(self) -> int:
        """The features without the bits that only front-end and back-end know of."""
        return self.features & ~(F_LOG_ALL | F_PROTOCOL_FEATURES)

    @property
    def enables_all_rings(self) -> bool:
        """Whether all rings are enabled at once, as a front-end without SET_VRING_ENABLE needs."""
        return not self.features & F_PROTOCOL_FEATURES

    @property
    def logs_writes(self) -> bool:
        """Whether writes to guest memory are to be logged from now on."""
        return bool(self.features & F_LOG_ALL)


@dataclass(frozen=True, slots=True)
class GetProtocolFeatures:
    """Which protocol features are offered."""


@dataclass(frozen=True, slots=True)
class SetProtocolFeatures:
    """The protocol features that the front-end will use; they replace earlier ones."""

    features: ProtocolFeature


@dataclass(frozen=True, slots=True)
class SetOwner:
    """A session begins, and what an earlier one said of memory and rings is void.

    QEMU sends it again when the device is unplugged and plugged in anew on the same connection. It
    then announces all of its memory a second time, without having taken any of it back.
    """


@dataclass(frozen=True, slots=True)
class ResetOwner:
    """Deprecated. Ignore it, or disable all rings."""


@dataclass(frozen=True, slots=True)
class GetQueueNum:
    """How many queues there can be."""


@dataclass(frozen=True, slots=True)
class GetMaxMemSlots:
    """How many memory regions there can be."""


@dataclass(frozen=True, slots=True)
class SetMemTable:
    """All of guest memory, replacing what was known. One file descriptor per region, in order."""

    regions: tuple[MemoryRegion, ...]


@dataclass(frozen=True, slots=True)
class AddMemRegion:
    """One more region, with its file descriptor."""

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class RemMemRegion:
    """A region goes away: the one with these addresses and size, whatever its `mmap_offset`.

    Some front-ends send a file descriptor along. Close it.
    """

    region: MemoryRegion


@dataclass(frozen=True, slots=True)
class SetLogBase:
    """Where the dirty log is. Without LOG_SHMFD there is no descriptor, and so nothing to map."""

    size: int
    offset: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetLogFd:
    """An eventfd to signal when something was logged."""


@dataclass(frozen=True, slots=True)
class SetVringNum:
    """A ring's size as the driver chose it: check it with `ring.check_queue_size`."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class SetVringAddr:
    """Where a ring's areas are. It comes again on a running ring when logging is switched.

    Attributes:
        index: The ring.
        flags: Whether writes to the used ring are logged.
        descriptor: User address of the descriptor table (a guest address with GPA_ADDRESSES).
        used: Likewise of the used ring.
        available: Likewise of the available ring.
        log: Guest address under which the used ring is logged.
    """

    index: int
    flags: VringAddrFlag
    descriptor: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class SetVringBase:
    """At which index to go on.

    Attributes:
        index: The ring.
        base: Split ring: the next available index, 16 bits. Packed ring: that index with its wrap
            counter below, the used index with its own above.
    """

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class GetVringBase:
    """Stop the ring and say at which index. Answer with `reply_vring_state`."""

    index: int


@dataclass(frozen=True, slots=True)
class SetVringKick:
    """The eventfd with which the driver notifies; without one, poll the ring."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringCall:
    """The eventfd with which to interrupt; without one, the driver polls."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringErr:
    """The eventfd with which to report a broken ring, or none."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringEnable:
    """Whether the ring's requests take effect."""

    index: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class SetBackendReqFd:
    """The socket for requests of the back-end."""


@dataclass(frozen=True, slots=True)
class GetConfig:
    """The guest reads its config space. Answer with `reply_config`."""

    offset: int
    size: int
    flags: ConfigFlag


@dataclass(frozen=True, slots=True)
class SetConfig:
    """The guest has written somewhere in its config space.

    QEMU sends the whole space, and all but the bytes just written are what it last read: possibly
    of the guest's previous boot.
    """

    offset: int
    flags: ConfigFlag
    data: bytes


@dataclass(frozen=True, slots=True)
class SetStatus:
    """The virtio device status that the driver has written."""

    status: int


@dataclass(frozen=True, slots=True)
class GetStatus:
    """The virtio device status. Answer with `reply_u64`."""


@dataclass(frozen=True, slots=True)
class ResetDevice:
    """Disable all rings and forget all device state, but not the session."""


@dataclass(frozen=True, slots=True)
class SetDeviceStateFd:
    """Migration: the pipe through which the device's state is to go."""

    direction: TransferDirection
    phase: MigrationPhase


@dataclass(frozen=True, slots=True)
class CheckDeviceState:
    """Migration: whether the state went through. Answer with `ack`."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A well-formed message that this back-end does not serve. Answer with `ack(False)`.

    Attributes:
        request: Its code, perhaps one that no specification has.
        reason: Why it is refused, for the log.
    """

    request: int
    reason: str


Event = (
    GetFeatures
    | SetFeatures
    | GetProtocolFeatures
    | SetProtocolFeatures
    | SetOwner
    | ResetOwner
    | GetQueueNum
    | GetMaxMemSlots
    | SetMemTable
    | AddMemRegion
    | RemMemRegion
    | SetLogBase
    | SetLogFd
    | SetVringNum
    | SetVringAddr
    | SetVringBase
    | GetVringBase
    | SetVringKick
    | SetVringCall
    | SetVringErr
    | SetVringEnable
    | SetBackendReqFd
    | GetConfig
    | SetConfig
    | SetStatus
    | GetStatus
    | ResetDevice
    | SetDeviceStateFd
    | CheckDeviceState
    | Unsupported
)

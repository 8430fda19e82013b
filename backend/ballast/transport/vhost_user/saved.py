"""What a vhost-user session leaves for a successor: plain values, and how descriptors are called.

The descriptors are in the store: `outbox`, `memory.N`, `kick.N`, `call.N`, `err.N`, `channel.N` and
`channel-outbox.N`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast.balloon.state import DeviceState

OUTBOX = "outbox"


@dataclass(frozen=True, slots=True)
class SavedRegion:
    """A region of guest memory, in bytes.

    Attributes:
        guest_address: First guest physical address.
        size_bytes: Length.
        user_address: The same byte in the front-end's address space.
        file_offset: Where it begins in its file.
        number: Under which the file is stored.
    """

    guest_address: int
    size_bytes: int
    user_address: int
    file_offset: int
    number: int


@dataclass(frozen=True, slots=True)
class SavedMark:
    """How a ring looked when it was stopped."""

    base: int
    addresses: tuple[int, int, int]
    size: int


@dataclass(frozen=True, slots=True)
class SavedVring:
    """One ring. Of one that runs, the position is in its used ring.

    Attributes:
        size: Number of descriptors.
        addresses: Of descriptor table, available ring and used ring.
        next_avail: Where it stopped, or is to begin.
        lead: How far the next available index is ahead of the next used one when nothing is held.
        is_enabled: Whether its buffers may be taken.
        is_started: Whether it runs.
        is_broken: Whether the driver has made it unusable.
        mark: How it looked when it was stopped.
        fds: Which of its descriptors are stored: `kick`, `call`, `err`.
    """

    size: int = 0
    addresses: tuple[int, int, int] = (0, 0, 0)
    next_avail: int = 0
    lead: int = 0
    is_enabled: bool = False
    is_started: bool = False
    is_broken: bool = False
    mark: SavedMark | None = None
    fds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session between two messages.

    Attributes:
        features_offered: What was offered, which holds for the life of the connection.
        features_acked: What SET_FEATURES said last.
        protocol_features_acked: What SET_PROTOCOL_FEATURES said last.
        regions: The guest's memory.
        vrings: The rings.
        channel: The number under which the back-end's channel is stored; None without one.
        device: The device's state.
    """

    features_offered: int
    features_acked: int = 0
    protocol_features_acked: int = 0
    regions: tuple[SavedRegion, ...] = ()
    vrings: tuple[SavedVring, ...] = ()
    channel: int | None = None
    device: DeviceState = field(default_factory=DeviceState)

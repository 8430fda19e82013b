"""What a client has asked for, and what became of what we asked the client for.

A `Request` wraps what has to be answered. The other events, the `Dma...` ones at the end, answer a
command of our own and are final.

File descriptors that came with a message belong to whoever handles its event. `DmaMap` and
`SetIrqEventfds` say how many those are; no other event has any to keep, and what came with a
`Refused` has to be closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import compress
from typing import NamedTuple

from ballast_protocol.errors import PeerError
from ballast_protocol.vfio_user.capabilities import Capabilities
from ballast_protocol.vfio_user.codes import DmaMapFlag


class IrqAction(Enum):
    """What DEVICE_SET_IRQS does to an interrupt."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True)
class Version:
    """The session begins. By now both sides have agreed; `auto_reply` says so to the client."""

    major: int
    minor: int
    proposed: Capabilities


@dataclass(frozen=True, slots=True)
class DmaMap:
    """The device may access this range. It overlaps no other, so it can simply be added.

    QEMU sends the same file once for each range, and also ranges without a file: ROMs, video
    memory, and parts of regions of ours that it has mapped. A file does not prove that its pages
    are shared: with `share=off` the client writes to private copies of them.

    Attributes:
        address: Where it starts in the device's address space.
        size: Bytes, not 0.
        offset: Where it starts in the file.
        flags: READ, WRITE or both.
        has_fd: Whether the file came along.
    """

    address: int
    size: int
    offset: int
    flags: DmaMapFlag
    has_fd: bool


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """The device may no longer access exactly this range, which was mapped.

    By the time it is acknowledged nothing may hold on to the range's memory. It cannot be refused.
    """

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DmaUnmapAll:
    """The device may no longer access anything. It cannot be refused."""


@dataclass(frozen=True, slots=True)
class GetInfo:
    """How many regions and interrupt types there are."""


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """What a region is. `room` is how many bytes of payload the client can take."""

    index: int
    room: int


@dataclass(frozen=True, slots=True)
class GetRegionIoFds:
    """How a region can be written without messages. `room` as for `GetRegionInfo`."""

    index: int
    room: int


@dataclass(frozen=True, slots=True)
class GetIrqInfo:
    """What an interrupt type is."""

    index: int


@dataclass(frozen=True, slots=True)
class DisableIrqs:
    """Forget every eventfd of an interrupt type: triggers, and those of mask and unmask."""

    index: int


@dataclass(frozen=True, slots=True)
class SetIrqEventfds:
    """Eventfds for the interrupts `start` to `start + count - 1`, replacing earlier ones.

    Attributes:
        index: The interrupt type.
        start: The first interrupt.
        count: How many, at least one.
        action: On what occasion the eventfds are to be signalled.
        has_fds: Whether `count` descriptors came. If not, the interrupts lose those they had.
    """

    index: int
    start: int
    count: int
    action: IrqAction
    has_fds: bool


@dataclass(frozen=True, slots=True)
class ActOnIrqs:
    """Mask, unmask or trigger interrupts now, of those from `start` to `start + count - 1`.

    Attributes:
        index: The interrupt type.
        start: The first interrupt.
        count: How many, at least one.
        action: What to do with them.
        chosen: For each whether it is meant; None if all are.
    """

    index: int
    start: int
    count: int
    action: IrqAction
    chosen: tuple[bool, ...] | None = None

    @property
    def vectors(self) -> tuple[int, ...]:
        """The interrupts that are meant; there may be none."""
        whole = range(self.start, self.start + self.count)
        return tuple(whole) if self.chosen is None else tuple(compress(whole, self.chosen))


@dataclass(frozen=True, slots=True)
class RegionRead:
    """The guest loads `count` bytes, at least one. Answer with `reply_data`."""

    region: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """The guest stores `data`, at least one byte."""

    region: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """Several stores, to be done in this order."""

    writes: tuple[RegionWrite, ...]


@dataclass(frozen=True, slots=True)
class DeviceReset:
    """Reset the device. DMA ranges and eventfds stay."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A whole message that is not served. `auto_reply` tells the client so.

    Attributes:
        command: Its code.
        errno: What the client is told.
        reason: The same for people.
    """

    command: int
    errno: int
    reason: str


Event = (
    Version
    | DmaMap
    | DmaUnmap
    | DmaUnmapAll
    | GetInfo
    | GetRegionInfo
    | GetRegionIoFds
    | GetIrqInfo
    | DisableIrqs
    | SetIrqEventfds
    | ActOnIrqs
    | RegionRead
    | RegionWrite
    | RegionWriteMulti
    | DeviceReset
    | Refused
)


class Request(NamedTuple):
    """An event that has to be finished, with which message it came.

    Attributes:
        number: Counts the requests of a connection from 1; the client's message ids may repeat.
        message_id: The client's id, echoed in the reply.
        command: The message's code.
        reply_demanded: Whether the client waits. If not, finishing the request gives no bytes.
        event: What is asked for.
    """

    number: int
    message_id: int
    command: int
    reply_demanded: bool
    event: Event


@dataclass(frozen=True, slots=True)
class DmaReadDone:
    """What DMA_READ has read. `command_id` as for all of these: what sending it returned."""

    command_id: int
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DmaWriteDone:
    """DMA_WRITE is done."""

    command_id: int
    address: int
    count: int


@dataclass(frozen=True, slots=True)
class DmaFailed:
    """The client has refused a DMA_READ or DMA_WRITE, with an errno that may be 0."""

    command_id: int
    errno: int


Completion = DmaReadDone | DmaWriteDone | DmaFailed


class RefusalError(PeerError):
    """A whole message that is to be answered with an errno. It never leaves this package.

    Attributes:
        errno: Which.
    """

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno

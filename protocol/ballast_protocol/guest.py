"""The agent channel: what the daemon and the agent inside the guest say to each other.

Messages travel in the frames of `ballast_protocol.guest_framing`, as JSON objects with the field
names of the classes below. Fields that the reader does not know are ignored.

`HelloRequest`, `Hello`, `Welcome` and `ErrorReply` keep the form they have in version 1 for ever;
they are how two ends of different age find a version that both speak.

What the other end says is never trusted: every number, text and list is bounded, and the bounds are
such that sums over a whole report stay below 2^63.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Union

from ballast_protocol.errors import MalformedError
from ballast_protocol.guest_blocks import (
    BlockMessage,
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Compact,
    CompactDone,
    Holding,
    HoldingAck,
    SetSweeps,
    Sweep,
    SweepDone,
)
from ballast_protocol.guest_blocks_wire import BLOCK_READERS
from ballast_protocol.guest_fields import MAX_TEXT, Fields, parse_object
from ballast_protocol.guest_framing import Frame
from ballast_protocol.guest_kinds import MessageKind as MessageKind

PORT_NAME = "org.ballast.agent.0"
"""Name of the virtio-serial port."""

VERSIONS = (1, 2)
"""Versions of the protocol that this module speaks, oldest first. 2 adds blocks."""

FIRST_VERSION = VERSIONS[0]
"""The version that introductions and refusals are written in."""

BLOCKS_VERSION = 2
"""The version that messages about blocks are written in."""

ABILITY_REPORT = "memory-report"
"""Ability of an agent that sends `MemoryReport`."""
ABILITY_BLOCKS = "memory-blocks"
"""Ability of an agent that understands the messages of `ballast_protocol.guest_blocks`."""

MAX_REPORT_BYTES = 1 << 52
"""Bound of every amount of memory: x86-64 and arm64 have no more physical addresses."""
MAX_ZONES = 1024
MAX_ORDERS = 32
MIN_INTERVAL_SECONDS = 0.1
MAX_INTERVAL_SECONDS = 3600.0

_SECONDS_MAX = 1e10
_PAGE_SIZES = tuple(1 << shift for shift in range(12, 19))
_NODE_MAX = (1 << 16) - 1
_PAGE_NUMBER_MAX = MAX_REPORT_BYTES >> 12


@dataclass(frozen=True)
class HelloRequest:
    """Host to agent: introduce yourself."""


@dataclass(frozen=True)
class Hello:
    """Agent to host: who is speaking.

    Attributes:
        agent_version: Version of the agent's software.
        protocol_versions: Versions of this protocol that it speaks.
        abilities: What it can do, such as `ABILITY_REPORT`; unknown ones are ignored.
        kernel_release: As `uname -r` shows it.
        page_size: Bytes in a page of the guest's kernel.
        boot_id: The kernel's random name for this boot; a new one means that the guest restarted.
        interval_seconds: Time between reports that the guest's administrator wants; None leaves it
            to the host.
        hello_id: A number that no other `Hello` has; None from an agent that knows no blocks.
    """

    agent_version: str
    protocol_versions: tuple[int, ...]
    abilities: tuple[str, ...]
    kernel_release: str
    page_size: int
    boot_id: str
    interval_seconds: float | None = None
    hello_id: int | None = None


@dataclass(frozen=True)
class Welcome:
    """Host to agent: the version to speak from now on, and how often to report.

    Attributes:
        protocol_version: The newest that both speak.
        interval_seconds: Time between reports.
        hello_id: That of the hello which this answers.
        session: Number of the session that begins, different for every welcome; None from a host
            that wants no blocks.
    """

    protocol_version: int
    interval_seconds: float
    hello_id: int | None = None
    session: int | None = None


@dataclass(frozen=True)
class ReportRequest:
    """Host to agent: send a report now, under this request's id."""


@dataclass(frozen=True)
class SetInterval:
    """Host to agent: report this often from now on."""

    interval_seconds: float


@dataclass(frozen=True)
class ErrorReply:
    """Either way: a message was refused, and why. The channel goes on.

    Attributes:
        refused_kind: Kind of the message that was refused.
        reason: One sentence for people.
    """

    refused_kind: int
    reason: str


@dataclass(frozen=True)
class PressureLine:
    """One line of `/proc/pressure/memory`: percentages of time, and a total since boot."""

    avg10: float
    avg60: float
    avg300: float
    total_microseconds: int


@dataclass(frozen=True)
class Pressure:
    """How long tasks waited for memory: some of them, or all at once."""

    some: PressureLine
    full: PressureLine


@dataclass(frozen=True)
class ZoneReport:
    """One zone of one NUMA node.

    Attributes:
        node: NUMA node.
        zone: Name, such as `DMA32` or `Movable`.
        start_pfn: First page of the zone, in the guest kernel's own pages.
        spanned_bytes: From first to last page, holes included.
        present_bytes: Without the holes.
        managed_bytes: What the kernel's page allocator was given.
        min_bytes: Watermark below which only urgent allocations succeed.
        low_bytes: Watermark at which background reclaim starts.
        high_bytes: Watermark at which background reclaim stops.
        free_blocks: How many free blocks of 2^order pages there are, by order.
    """

    node: int
    zone: str
    start_pfn: int
    spanned_bytes: int
    present_bytes: int
    managed_bytes: int
    min_bytes: int
    low_bytes: int
    high_bytes: int
    free_blocks: tuple[int, ...]


@dataclass(frozen=True)
class MemoryReport:
    """The guest's memory at one moment, as its kernel tells it.

    Attributes:
        boottime_seconds: When, in seconds since the guest booted.
        page_size: Bytes in a block of order 0.
        meminfo_bytes: Fields of `/proc/meminfo` by the kernel's names.
        zones: The zones that have memory.
        pressure: None where the kernel does not measure it.
    """

    boottime_seconds: float
    page_size: int
    meminfo_bytes: Mapping[str, int]
    zones: tuple[ZoneReport, ...]
    pressure: Pressure | None = None

    def free_bytes_by_order(self, zones: Iterable[ZoneReport] | None = None) -> tuple[int, ...]:
        """Return the free bytes in blocks of each order, summed over `zones` or all of them."""
        chosen = tuple(self.zones if zones is None else zones)
        orders = max((len(zone.free_blocks) for zone in chosen), default=0)
        return tuple(
            sum(z.free_blocks[order] for z in chosen if order < len(z.free_blocks))
            * (self.page_size << order)
            for order in range(orders)
        )


Message = Union[
    Hello, Welcome, HelloRequest, ReportRequest, MemoryReport, SetInterval, ErrorReply, BlockMessage
]

_KINDS: dict[type, MessageKind] = {
    Hello: MessageKind.HELLO,
    Welcome: MessageKind.WELCOME,
    HelloRequest: MessageKind.HELLO_REQUEST,
    ReportRequest: MessageKind.REPORT_REQUEST,
    MemoryReport: MessageKind.MEMORY_REPORT,
    SetInterval: MessageKind.SET_INTERVAL,
    ErrorReply: MessageKind.ERROR,
    BlocksGoal: MessageKind.BLOCKS_GOAL,
    Sweep: MessageKind.SWEEP,
    SetSweeps: MessageKind.SET_SWEEPS,
    Compact: MessageKind.COMPACT,
    CompactDone: MessageKind.COMPACT_DONE,
    BlocksReport: MessageKind.BLOCKS_REPORT,
    BlocksAck: MessageKind.BLOCKS_ACK,
    BlocksReleased: MessageKind.BLOCKS_RELEASED,
    Holding: MessageKind.HOLDING,
    HoldingAck: MessageKind.HOLDING_ACK,
    BlocksStatus: MessageKind.BLOCKS_STATUS,
    SweepDone: MessageKind.SWEEP_DONE,
}


def encode(message: Message, request_id: int = 0) -> bytes:
    """Return the frame that carries `message`.

    Raises:
        InternalError: If the message is too long for a frame, or `request_id` out of range.
    """
    payload = json.dumps(asdict(message), separators=(",", ":"), allow_nan=False)
    kind = _KINDS[type(message)]
    version = BLOCKS_VERSION if kind >= MessageKind.BLOCKS_GOAL else FIRST_VERSION
    return Frame(kind, request_id, payload.encode("ascii"), version).pack()


def decode(frame: Frame) -> Message:
    """Return the message that a frame carries, every field checked.

    Frames mark their own ends, so after an error the channel can go on; the sender of the message
    is told with an `ErrorReply`.

    Raises:
        MalformedError: If version or kind is unknown, or a field is missing, of the wrong type or
            out of bounds.
    """
    if frame.version not in VERSIONS:
        raise MalformedError(f"version {frame.version} of the agent protocol is not spoken here")
    reader = _READERS.get(frame.kind)
    if reader is None:
        raise MalformedError(f"messages of kind {frame.kind} are not known here")
    return reader(parse_object(frame.payload, f"kind {frame.kind}"))


def refusal(kind: int, error: Exception) -> ErrorReply:
    """Return the reply that tells the sender of a message of this kind what was wrong with it."""
    return ErrorReply(kind, short_text(str(error)))


def short_text(text: str) -> str:
    """Return `text` as the other end will accept it: printable, and not too long."""
    return "".join(char for char in text[:MAX_TEXT] if char.isprintable())


def agree_on_version(theirs: Iterable[int]) -> int | None:
    """Return the newest version that both ends speak; None if there is none."""
    return max(set(theirs) & set(VERSIONS), default=None)


def _read_hello(fields: Fields) -> Hello:
    return Hello(
        agent_version=fields.text("agent_version"),
        protocol_versions=fields.integers("protocol_versions"),
        abilities=fields.texts("abilities"),
        kernel_release=fields.text("kernel_release"),
        page_size=_read_page_size(fields),
        boot_id=fields.text("boot_id"),
        interval_seconds=None if fields.is_null("interval_seconds") else _read_interval(fields),
        hello_id=_read_optional(fields, "hello_id"),
    )


def _read_optional(fields: Fields, name: str) -> int | None:
    return None if fields.is_null(name) else fields.integer(name)


def _read_page_size(fields: Fields) -> int:
    size = fields.integer("page_size")
    if size not in _PAGE_SIZES:
        fields.refuse("page_size", f"is {size}, which is no page size")
    return size


def _read_interval(fields: Fields) -> float:
    return fields.number("interval_seconds", MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS)


def _read_welcome(fields: Fields) -> Welcome:
    return Welcome(
        fields.integer("protocol_version"),
        _read_interval(fields),
        hello_id=_read_optional(fields, "hello_id"),
        session=_read_optional(fields, "session"),
    )


def _read_error(fields: Fields) -> ErrorReply:
    return ErrorReply(fields.integer("refused_kind"), fields.text("reason"))


def _read_report(fields: Fields) -> MemoryReport:
    page_size = _read_page_size(fields)
    zones = tuple(_read_zone(zone, page_size) for zone in fields.inners("zones", MAX_ZONES))
    if len({(zone.node, zone.zone) for zone in zones}) < len(zones):
        fields.refuse("zones", "has one zone twice")
    return MemoryReport(
        boottime_seconds=fields.number("boottime_seconds", _SECONDS_MAX),
        page_size=page_size,
        meminfo_bytes=fields.inner("meminfo_bytes").integers_by_name(MAX_REPORT_BYTES),
        zones=zones,
        pressure=None if fields.is_null("pressure") else _read_pressure(fields.inner("pressure")),
    )


_ZONE_AMOUNTS = (
    "spanned_bytes",
    "present_bytes",
    "managed_bytes",
    "min_bytes",
    "low_bytes",
    "high_bytes",
)


def _read_zone(fields: Fields, page_size: int) -> ZoneReport:
    free_blocks = fields.integers("free_blocks", MAX_ORDERS)
    if sum(n * (page_size << order) for order, n in enumerate(free_blocks)) > MAX_REPORT_BYTES:
        fields.refuse("free_blocks", "adds up to more than any machine has")
    return ZoneReport(
        node=fields.integer("node", _NODE_MAX),
        zone=fields.text("zone"),
        start_pfn=fields.integer("start_pfn", _PAGE_NUMBER_MAX),
        free_blocks=free_blocks,
        **{name: fields.integer(name, MAX_REPORT_BYTES) for name in _ZONE_AMOUNTS},
    )


def _read_pressure(fields: Fields) -> Pressure:
    return Pressure(*(_read_pressure_line(fields.inner(name)) for name in ("some", "full")))


def _read_pressure_line(fields: Fields) -> PressureLine:
    avg10, avg60, avg300 = (fields.number(name, 100.0) for name in ("avg10", "avg60", "avg300"))
    return PressureLine(avg10, avg60, avg300, fields.integer("total_microseconds"))


_READERS: dict[int, Callable[[Fields], Message]] = {
    MessageKind.HELLO: _read_hello,
    MessageKind.WELCOME: _read_welcome,
    MessageKind.HELLO_REQUEST: lambda fields: HelloRequest(),
    MessageKind.REPORT_REQUEST: lambda fields: ReportRequest(),
    MessageKind.MEMORY_REPORT: _read_report,
    MessageKind.SET_INTERVAL: lambda fields: SetInterval(_read_interval(fields)),
    MessageKind.ERROR: _read_error,
    **{_KINDS[message]: reader for message, reader in BLOCK_READERS.items()},
}

"""What is known of a guest through its agent, and the same as JSON values for `ballast-status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum

from ballast_protocol.guest import Hello, MemoryReport, ZoneReport


class LinkState(Enum):
    """How far the conversation has got."""

    NO_QEMU = "no-qemu"
    NO_AGENT = "no-agent"
    MUTE = "mute"
    REPORTING = "reporting"


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """The agent that introduced itself.

    Attributes:
        hello: What it said of itself.
        protocol_version: The version agreed on.
        interval_seconds: How often it was told to report.
    """

    hello: Hello
    protocol_version: int
    interval_seconds: float

    def is_same_as(self, known: AgentInfo) -> bool:
        """Return whether an introduction tells nothing new.

        An agent's own and the one that it was asked for may cross on the way; each has its own id.
        """
        hello = replace(self.hello, hello_id=known.hello.hello_id)
        return replace(self, hello=hello) == known


@dataclass(frozen=True, slots=True)
class ReceivedReport:
    """A report, and when it came.

    Attributes:
        report: What the guest said.
        boot_id: Which life of the guest it is about.
        loop_time: When it came, by the event loop's clock.
        wall_time: When it came, in seconds since 1970.
    """

    report: MemoryReport
    boot_id: str
    loop_time: float
    wall_time: float


@dataclass(slots=True)
class LinkCounters:
    """What has happened on the link since the daemon started.

    Attributes:
        connections: How often QEMU connected.
        rejected_connections: How often somebody did while QEMU was there.
        messages: Good messages from the guest.
        refused_messages: Messages from the guest that broke the protocol.
        skipped_bytes: Bytes from the guest that belonged to no message.
    """

    connections: int = 0
    rejected_connections: int = 0
    messages: int = 0
    refused_messages: int = 0
    skipped_bytes: int = 0


def link_status(
    state: LinkState,
    agent: AgentInfo | None,
    report: ReceivedReport | None,
    counters: LinkCounters,
    loop_time: float,
) -> dict[str, object]:
    """Return everything that is known of a link."""
    age = 0.0 if report is None else loop_time - report.loop_time
    return {
        "state": state.value,
        "agent": None if agent is None else agent_status(agent),
        "report": None if report is None else report_status(report, age),
        "counters": hyphenated(asdict(counters)),
    }


def agent_status(agent: AgentInfo) -> dict[str, object]:
    """Return who the agent is."""
    return {
        "version": agent.hello.agent_version,
        "abilities": list(agent.hello.abilities),
        "protocol-version": agent.protocol_version,
        "interval-seconds": agent.interval_seconds,
        "kernel-release": agent.hello.kernel_release,
        "page-size": agent.hello.page_size,
        "boot-id": agent.hello.boot_id,
    }


def report_status(received: ReceivedReport, age_seconds: float) -> dict[str, object]:
    """Return a report with its sums; orders are keys, because JSON has no others."""
    report = received.report
    return {
        "age-seconds": round(age_seconds, 3),
        "received-unix-seconds": round(received.wall_time, 3),
        "boottime-seconds": report.boottime_seconds,
        "meminfo-bytes": dict(report.meminfo_bytes),
        "pressure": None if report.pressure is None else hyphenated(asdict(report.pressure)),
        "free-bytes-by-order": _by_order(report, report.zones),
        "zones": [_zone_status(report, zone) for zone in report.zones],
    }


def _zone_status(report: MemoryReport, zone: ZoneReport) -> dict[str, object]:
    fields = hyphenated(asdict(zone))
    del fields["free-blocks"]
    by_order = _by_order(report, [zone])
    return {**fields, "free-bytes": sum(by_order.values()), "free-bytes-by-order": by_order}


def _by_order(report: MemoryReport, zones: Iterable[ZoneReport]) -> dict[str, int]:
    return {str(order): free for order, free in enumerate(report.free_bytes_by_order(zones))}


def hyphenated(value: Mapping[str, object]) -> dict[str, object]:
    """Return a mapping with its keys, and those of mappings inside it, as QMP spells names."""
    return {
        key.replace("_", "-"): hyphenated(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
    }

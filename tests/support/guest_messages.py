"""Messages of the agent channel as a small guest would send them."""

from __future__ import annotations

from ballast_protocol.guest import Hello, MemoryReport, Pressure, PressureLine, ZoneReport

MIB = 1 << 20

HELLO = Hello(
    agent_version="0.1.0",
    protocol_versions=(1,),
    abilities=("memory-report",),
    kernel_release="6.12.0",
    page_size=4096,
    boot_id="3a4c0d7e-0a51-4a5e-9d3b-7f6a1b1c2d3e",
)


def zone(
    node: int = 0, name: str = "Normal", free_blocks: tuple[int, ...] = (5, 0, 2)
) -> ZoneReport:
    return ZoneReport(
        node=node,
        zone=name,
        start_pfn=4096,
        spanned_bytes=256 * MIB,
        present_bytes=250 * MIB,
        managed_bytes=240 * MIB,
        min_bytes=1 * MIB,
        low_bytes=2 * MIB,
        high_bytes=3 * MIB,
        free_blocks=free_blocks,
    )


def report(*zones: ZoneReport, boottime_seconds: float = 12.5) -> MemoryReport:
    return MemoryReport(
        boottime_seconds=boottime_seconds,
        page_size=4096,
        meminfo_bytes={"MemTotal": 250 * MIB, "MemFree": 52 * MIB},
        zones=zones or (zone(),),
        pressure=Pressure(PressureLine(0.5, 0.25, 0.0, 1234), PressureLine(0.0, 0.0, 0.0, 56)),
    )

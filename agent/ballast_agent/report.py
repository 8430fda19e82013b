"""Puts together what the agent tells the host about itself and about the guest's memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ballast_agent import __version__
from ballast_agent.procfs import (
    ZoneInfo,
    ZoneKey,
    parse_buddyinfo,
    parse_meminfo,
    parse_pressure,
    parse_zoneinfo,
)
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import (
    ABILITY_REPORT,
    VERSIONS,
    Hello,
    MemoryReport,
    Pressure,
    ZoneReport,
)

PROC = Path("/proc")

MEMINFO_FIELDS = (
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Buffers",
    "Cached",
    "SwapCached",
    "Active",
    "Inactive",
    "Unevictable",
    "Mlocked",
    "SwapTotal",
    "SwapFree",
    "Dirty",
    "Writeback",
    "AnonPages",
    "Mapped",
    "Shmem",
    "KReclaimable",
    "SReclaimable",
    "SUnreclaim",
    "KernelStack",
    "PageTables",
    "CommitLimit",
    "Committed_AS",
    "AnonHugePages",
    "Balloon",
    "CmaTotal",
    "CmaFree",
    "Hugetlb",
)
"""What is reported of `/proc/meminfo`, where the kernel has it."""


def take_report(proc: Path = PROC) -> MemoryReport:
    """Read the guest's memory as it is now.

    Raises:
        OperatorError: If the kernel does not show it, or not to this user.
    """
    page_size = os.sysconf("SC_PAGE_SIZE")
    free_blocks = parse_buddyinfo(_read(proc / "buddyinfo"))
    zones = parse_zoneinfo(_read(proc / "zoneinfo"))
    meminfo = parse_meminfo(_read(proc / "meminfo"))
    return MemoryReport(
        boottime_seconds=time.clock_gettime(time.CLOCK_BOOTTIME),
        page_size=page_size,
        meminfo_bytes={name: meminfo[name] for name in MEMINFO_FIELDS if name in meminfo},
        # Memory can be plugged in between the two readings; such a zone waits for the next report.
        zones=tuple(
            _zone_report(key, zones[key], blocks, page_size)
            for key, blocks in free_blocks.items()
            if key in zones
        ),
        pressure=_read_pressure(proc / "pressure" / "memory"),
    )


def introduce(*, interval_seconds: float | None = None, proc: Path = PROC) -> Hello:
    """Return what the agent says of itself, and how often it would like to report.

    Raises:
        OperatorError: If the kernel does not tell its boot id.
    """
    return Hello(
        agent_version=__version__,
        protocol_versions=VERSIONS,
        abilities=(ABILITY_REPORT,),
        kernel_release=os.uname().release,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        boot_id=_read(proc / "sys/kernel/random/boot_id").strip(),
        interval_seconds=interval_seconds,
    )


def _zone_report(
    key: ZoneKey, info: ZoneInfo, free_blocks: tuple[int, ...], page_size: int
) -> ZoneReport:
    node, zone = key
    return ZoneReport(
        node=node,
        zone=zone,
        start_pfn=info.start_pfn,
        spanned_bytes=info.spanned * page_size,
        present_bytes=info.present * page_size,
        managed_bytes=info.managed * page_size,
        min_bytes=info.min * page_size,
        low_bytes=info.low * page_size,
        high_bytes=info.high * page_size,
        free_blocks=free_blocks,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except PermissionError:
        raise OperatorError(f"{path} may not be read by this user", hint="run as root") from None
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from None


def _read_pressure(path: Path) -> Pressure | None:
    # Kernels without PSI have no such file; those with PSI switched off refuse to read it.
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return None
    return parse_pressure(text)

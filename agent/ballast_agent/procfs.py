"""Parsers of what Linux says about memory in `/proc`: text in, values out, no files.

The formats are those of Linux's `mm/vmstat.c`, `fs/proc/meminfo.c` and `kernel/sched/psi.c`. Lines
that are not needed are passed over, because every kernel adds some.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import Pressure, PressureLine

ZoneKey = tuple[int, str]
"""NUMA node and zone name."""

_BUDDY_LINE = re.compile(r"Node\s+(\d+), zone\s+(\S+)((?:\s+\d+)+)\s*")
_ZONE_LINE = re.compile(r"Node\s+(\d+), zone\s+(\S+)\s*")
_ZONE_FIELD = re.compile(r"\s+(min|low|high|spanned|present|managed|start_pfn:)\s+(\d+)\s*")
_MEMINFO_LINE = re.compile(r"(\S+):\s+(\d+) kB\s*")
_PRESSURE_LINE = re.compile(
    r"(some|full) avg10=(\d+\.\d+) avg60=(\d+\.\d+) avg300=(\d+\.\d+) total=(\d+)\s*"
)
_RAM_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) : System RAM\b.*")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class ZoneInfo:
    """What `/proc/zoneinfo` says of one zone, in pages.

    `min`, `low` and `high` are the watermarks; the others are as in `ZoneReport`.
    """

    min: int
    low: int
    high: int
    spanned: int
    present: int
    managed: int
    start_pfn: int


def parse_buddyinfo(text: str) -> dict[ZoneKey, tuple[int, ...]]:
    """Return the number of free blocks by order, for each zone that has memory.

    Raises:
        OperatorError: If this is not what Linux writes.
    """
    zones: dict[ZoneKey, tuple[int, ...]] = {}
    for line in text.splitlines():
        match = _BUDDY_LINE.fullmatch(line)
        if match is None:
            raise OperatorError(f"/proc/buddyinfo has a line that is not understood: {line!r}")
        zones[int(match[1]), match[2]] = tuple(int(count) for count in match[3].split())
    return zones


def parse_zoneinfo(text: str) -> dict[ZoneKey, ZoneInfo]:
    """Return what is known of each zone that has memory.

    Zones without any are listed too, but without a first page; they are left out.
    """
    found: dict[ZoneKey, dict[str, int]] = {}
    fields: dict[str, int] = {}
    for line in text.splitlines():
        zone = _ZONE_LINE.fullmatch(line)
        if zone is not None:
            fields = found.setdefault((int(zone[1]), zone[2]), {})
            continue
        match = _ZONE_FIELD.fullmatch(line)
        if match is not None:
            fields[match[1].rstrip(":")] = int(match[2])
    wanted = ZoneInfo.__dataclass_fields__.keys()
    return {key: ZoneInfo(**zone) for key, zone in found.items() if zone.keys() == wanted}


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the fields that are amounts of memory, in bytes."""
    matches = (_MEMINFO_LINE.fullmatch(line) for line in text.splitlines())
    return {match[1]: int(match[2]) * 1024 for match in matches if match is not None}


def parse_pressure(text: str) -> Pressure:
    """Return the two lines of `/proc/pressure/memory`.

    Raises:
        OperatorError: If one is missing or not understood.
    """
    lines = {}
    for line in text.splitlines():
        match = _PRESSURE_LINE.fullmatch(line)
        if match is not None:
            averages = (float(match[2]), float(match[3]), float(match[4]))
            lines[match[1]] = PressureLine(*averages, total_microseconds=int(match[5]))
    if lines.keys() != {"some", "full"}:
        raise OperatorError(f"/proc/pressure/memory is not understood: {text!r}")
    return Pressure(lines["some"], lines["full"])


def parse_iomem(text: str) -> list[tuple[int, int]]:
    """Return where RAM is, from `/proc/iomem`: first byte and the byte after the last of each.

    Raises:
        OperatorError: If the addresses are hidden, as they are from all but root.
    """
    spans = []
    for line in text.splitlines():
        match = _RAM_LINE.fullmatch(line)
        if match is not None:
            spans.append((int(match[1], 16), int(match[2], 16) + 1))
    if not any(start or end > 1 for start, end in spans):
        raise OperatorError("/proc/iomem does not show where memory is", hint="run as root")
    return spans


def parse_mounts(text: str, file_system: str) -> list[str]:
    """Return where file systems of a type are mounted, from `/proc/self/mountinfo`."""
    places = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        if separator and after.split(" ", 1)[0] == file_system:
            # Spaces and the like are written as octal escapes.
            places.append(_ESCAPE.sub(lambda m: chr(int(m[1], 8)), before.split(" ")[4]))
    return places

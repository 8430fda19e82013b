"""A report as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ballast_protocol.guest import MemoryReport, PressureLine


def human_bytes(count: int) -> str:
    """Return an amount of memory in three digits or so: `4K`, `1.5G`."""
    value, unit = float(count), ""
    for larger in "KMGTP":
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}{unit}".replace(".0", "")


def render(report: MemoryReport) -> str:
    """Return the report as lines of text."""
    lines = [_render_meminfo(report), *_render_pressure(report), "", *_render_zones(report)]
    return "\n".join(lines)


def _render_meminfo(report: MemoryReport) -> str:
    names = ("MemTotal", "MemAvailable", "MemFree", "Cached", "SwapFree")
    known = [name for name in names if name in report.meminfo_bytes]
    return "  ".join(f"{name} {human_bytes(report.meminfo_bytes[name])}" for name in known)


def _render_pressure(report: MemoryReport) -> Iterator[str]:
    if report.pressure is None:
        yield "Pressure is not measured by this kernel"
        return
    yield "Time spent waiting for memory, % over 10 s, 1 min, 5 min:"
    yield f"  some tasks  {_render_averages(report.pressure.some)}"
    yield f"  all tasks   {_render_averages(report.pressure.full)}"


def _render_averages(line: PressureLine) -> str:
    return f"{line.avg10:6.2f} {line.avg60:6.2f} {line.avg300:6.2f}"


def _render_zones(report: MemoryReport) -> Iterator[str]:
    orders = len(report.free_bytes_by_order())
    sizes = [human_bytes(report.page_size << order) for order in range(orders)]
    yield "Free memory by size of block:"
    yield _row("node zone", "managed", "free", sizes)
    for zone in report.zones:
        free = report.free_bytes_by_order([zone])
        name = f"{zone.node:4} {zone.zone}"
        cells = [human_bytes(count) for count in free]
        yield _row(name, human_bytes(zone.managed_bytes), human_bytes(sum(free)), cells)


def _row(name: str, managed: str, free: str, cells: Sequence[str]) -> str:
    return f"{name:<13}{managed:>8}{free:>8} |" + "".join(f"{cell:>7}" for cell in cells)

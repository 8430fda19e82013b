"""Measurements, and the medians that are made of them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Measurement:
    """One piece of work, done once.

    Attributes:
        work: `inflate` or `deflate`.
        who: Which balloon.
        boot: How the guest's kernel was booted.
        memory: Whether the guest's memory had been `touched`, so that the host held it.
        seconds: Wall time.
        host_cpu_seconds: CPU time of QEMU, without the guest's CPUs, and of the backend.
        freed_bytes: How much less the host held afterwards.
        pattern: The order of page numbers, where a pattern was played; None for real guests.
        vms: How many VMs took part.
        buffers: How many buffers went through a ring; 0 if nobody counted.
        latency_p99_seconds: Of requests beside the work, where they were measured.
        backend_cpu_seconds: What of `host_cpu_seconds` the backend has spent, where it is a process
            of its own.
    """

    work: str
    who: str
    boot: str
    memory: str
    seconds: float
    host_cpu_seconds: float
    freed_bytes: int
    pattern: str | None = None
    vms: int = 1
    buffers: int = 0
    latency_p99_seconds: float | None = None
    backend_cpu_seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """Several measurements of the same thing.

    Attributes:
        work: As in `Measurement`.
        who: As in `Measurement`.
        pattern: As in `Measurement`.
        boot: As in `Measurement`.
        memory: As in `Measurement`.
        vms: As in `Measurement`.
        seconds_median: Of all rounds.
        seconds_all: Each round.
        host_cpu_seconds_median: Of all rounds.
        host_cpu_seconds_all: Each round.
        freed_bytes_median: Of all rounds.
        latency_p99_seconds: The median of all rounds.
        buffers: As in `Measurement`, in one round.
        backend_cpu_seconds_median: Of all rounds.
    """

    work: str
    who: str
    pattern: str | None
    boot: str
    memory: str
    vms: int
    seconds_median: float
    seconds_all: list[float]
    host_cpu_seconds_median: float
    host_cpu_seconds_all: list[float]
    freed_bytes_median: int
    latency_p99_seconds: float | None
    buffers: int = 0
    backend_cpu_seconds_median: float | None = None


def summarise(measurements: Iterable[Measurement]) -> list[Row]:
    """Return one row for each kind of measurement, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for each in measurements:
        kind = (each.boot, each.memory, each.pattern, each.vms, each.work, each.who)
        groups.setdefault(kind, []).append(each)
    return [_row(group) for group in groups.values()]


def _row(group: list[Measurement]) -> Row:
    first = group[0]
    seconds = [each.seconds for each in group]
    cpu = [each.host_cpu_seconds for each in group]
    latencies = [each.latency_p99_seconds for each in group if each.latency_p99_seconds is not None]
    backend = [each.backend_cpu_seconds for each in group if each.backend_cpu_seconds is not None]
    return Row(
        work=first.work,
        who=first.who,
        pattern=first.pattern,
        boot=first.boot,
        memory=first.memory,
        vms=first.vms,
        seconds_median=statistics.median(seconds),
        seconds_all=seconds,
        host_cpu_seconds_median=statistics.median(cpu),
        host_cpu_seconds_all=cpu,
        freed_bytes_median=int(statistics.median(each.freed_bytes for each in group)),
        latency_p99_seconds=statistics.median(latencies) if latencies else None,
        buffers=first.buffers,
        backend_cpu_seconds_median=statistics.median(backend) if backend else None,
    )


def machine_facts(accelerator: str, qemu_version: str, kernel: str) -> dict[str, object]:
    """Return what is needed to read the figures later."""
    return {
        "cpus": os.cpu_count(),
        "host-kernel": platform.release(),
        "python": platform.python_version(),
        "accelerator": accelerator,
        "qemu": qemu_version,
        "guest-kernel": kernel,
    }


def as_json(machine: dict[str, object], rows: Iterable[Row]) -> dict[str, object]:
    """Return everything as data."""
    return {"machine": machine, "rows": [asdict(row) for row in rows]}

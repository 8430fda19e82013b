"""How much of the guest's memory is really here: measured, never derived from the balloon."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 512
"""`st_blocks` counts these, whatever the file system's own block size (stat(2))."""


@dataclass(frozen=True)
class HostMemory:
    """How much of one guest's memory the host holds.

    Attributes:
        allocated_bytes: Blocks of the files behind it; None while there are no files.
        rss_shmem_bytes: What the VMM's page tables hold; None if the VMM cannot be looked at.
    """

    allocated_bytes: int | None
    rss_shmem_bytes: int | None


def allocated_bytes(fds: Iterable[int]) -> int:
    """Return how many bytes the host holds for these files (one descriptor per file)."""
    return sum(os.fstat(fd).st_blocks * _BLOCK_BYTES for fd in fds)


def rss_shmem_bytes(pid: int) -> int | None:
    """Return `RssShmem` of a process: shared memory that it has mapped and touched.

    Returns:
        Bytes, or None when the process is gone or may not be read.
    """
    return _status_bytes(pid, "RssShmem")


def rss_bytes(pid: int) -> int | None:
    """Return `VmRSS` of a process: all memory that it has mapped and touched.

    Returns:
        Bytes, or None when the process is gone or may not be read.
    """
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int, name: str) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None

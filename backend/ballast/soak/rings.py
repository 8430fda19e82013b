"""Looks at the guest's rings from outside: when does the device return a buffer again?

QEMU's memory is a memfd, which is reached through procfs and mapped for reading. Nobody is asked,
so the figure is that of the guest, whatever the daemon believes of itself.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ballast_protocol.errors import OperatorError

LOOK_SECONDS = 0.001
PENDING_SECONDS = 0.02
"""A kill counts for the figure if the guest waits for a buffer within so much of it."""

GIVE_UP_SECONDS = 30.0


class Ring:
    """One split virtqueue, as the guest's memory has it (virtio 1.3, section 2.7)."""

    def __init__(self, memory: mmap.mmap, avail_address: int, used_address: int) -> None:
        self._memory = memory
        self._avail, self._used = avail_address + 2, used_address + 2

    @property
    def avail_index(self) -> int:
        """How many buffers the driver has offered, modulo 2^16."""
        return self._index(self._avail)

    @property
    def used_index(self) -> int:
        """How many buffers the device has returned, modulo 2^16."""
        return self._index(self._used)

    @property
    def is_waiting(self) -> bool:
        """Whether the driver waits for a buffer."""
        return self.avail_index != self.used_index

    def _index(self, address: int) -> int:
        return int(struct.unpack_from("<H", self._memory, address)[0])


class GuestMemory:
    """The guest's memory, mapped for reading; a context manager."""

    def __init__(self, qemu_pid: int, size_bytes: int) -> None:
        """Find and map QEMU's memory file.

        Raises:
            OperatorError: QEMU has none of that size.
        """
        fd = os.open(_memory_file(qemu_pid, size_bytes), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def rings(self, described: Iterable[Mapping[str, Any]], indices: Iterable[int]) -> list[Ring]:
        """Return the rings with these indices, from how `ballast-status` describes them."""
        wanted = set(indices)
        return [
            Ring(self._memory, each["avail-address"], each["used-address"])
            for each in described
            if each["index"] in wanted
        ]


def _memory_file(pid: int, size_bytes: int) -> Path:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(entry)
            if name.startswith("/memfd:") and entry.stat().st_size == size_bytes:
                return entry
        except OSError:
            continue
    raise OperatorError(f"process {pid} has no memory file of {size_bytes} bytes")


async def gap_seconds(rings: list[Ring], killed_at: float) -> float | None:
    """Return how long after `killed_at` the first buffer came back.

    None if the guest was not waiting for any at the time, or none came: after a reboot the rings
    lie elsewhere.

    Args:
        rings: Those to look at: inflate, deflate, report; the statistics queue always holds one.
        killed_at: When the worker was killed, on the monotonic clock.
    """
    while not (waiting := [ring for ring in rings if ring.is_waiting]):
        if time.monotonic() > killed_at + PENDING_SECONDS:
            return None
        await asyncio.sleep(LOOK_SECONDS)
    before = [ring.used_index for ring in waiting]
    while time.monotonic() < killed_at + GIVE_UP_SECONDS:
        if any(ring.used_index != old for ring, old in zip(waiting, before, strict=True)):
            return time.monotonic() - killed_at
        await asyncio.sleep(LOOK_SECONDS)
    return None

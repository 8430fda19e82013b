"""Watches for file descriptors that are left open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_fds() -> dict[int, str]:
    """Return every descriptor that this process has open, and what it is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue  # the one that listed the directory
    return found


@contextmanager
def none_left_open() -> Iterator[None]:
    """Fail if more descriptors are open at the end than were at the beginning."""
    before = open_fds()
    yield
    left = {fd: what for fd, what in open_fds().items() if before.get(fd) != what}
    assert not left, f"left open: {left}"


def memory_file(size: int) -> int:
    """Return a descriptor of an empty file in memory, which the caller closes."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd

"""Huge pages of the host, for tests that need real ones."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HUGE_PAGE = 2 << 20

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_LOCK = Path(tempfile.gettempdir()) / "ballast-test-huge-pages.lock"
_SPARE_BYTES = 1 << 30
"""What the host is to have left beside the pool, for everything else that is being tested."""


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Have `count` huge pages of 2 MiB more in the host's pool, and the pool for oneself.

    One test at a time: others wait until the pool is as it was. Skips the test where there are
    none to be had.
    """
    if not os.access(_POOL / "nr_hugepages", os.W_OK):
        pytest.skip("only root can set huge pages aside, where /sys is writable")
    with _LOCK.open("w") as lock:
        # Of the kind that a forked process does not inherit.
        fcntl.lockf(lock, fcntl.LOCK_EX)
        # Surplus pages are in use, and go when they are not any more.
        before = _number("nr_hugepages") - _number("surplus_hugepages")
        _make_room_for(count)
        try:
            _set(before + count)
            if (found := _number("nr_hugepages")) < before + count:
                pytest.skip(f"only {found - before} of {count} huge pages: memory is fragmented")
            yield
        finally:
            _set(before)


@contextmanager
def none_to_spare() -> Iterator[None]:
    """Within `huge_pages`: let nobody have another one while the context lasts."""
    before = _number("nr_hugepages")
    _set(before - available_huge_pages())
    try:
        yield
    finally:
        _set(before)


def free_huge_pages() -> int:
    """Return how many huge pages of the pool nobody uses, reserved ones included."""
    return _number("free_hugepages")


def available_huge_pages() -> int:
    """Return how many of them a newcomer could have."""
    return _number("free_hugepages") - _number("resv_hugepages")


def huge_file(size: int) -> int:
    """Return a descriptor of an empty file of huge pages, which the caller closes."""
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, size)
    return fd


def _make_room_for(count: int) -> None:
    """Skip the test if the pool cannot grow without pressing the host."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if (
            name == "MemAvailable"
            and int(value.split()[0]) * 1024 < count * HUGE_PAGE + _SPARE_BYTES
        ):
            pytest.skip(f"the host has no {count * HUGE_PAGE >> 20} MiB to set aside")


def _number(name: str) -> int:
    try:
        return int((_POOL / name).read_text())
    except FileNotFoundError:
        pytest.skip("the host's kernel has no huge pages of 2 MiB")


def _set(count: int) -> None:
    try:
        (_POOL / "nr_hugepages").write_text(str(count))
    except OSError as error:
        pytest.skip(f"no huge pages can be set aside here: {error}")

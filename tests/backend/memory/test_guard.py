from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.memory import guard
from ballast.memory.map import MemoryMap, Region, RegionLayout

PAGE = mmap.PAGESIZE
SIZE = 8 * PAGE


@pytest.fixture
def fd() -> Iterator[int]:
    """An unsealed file, as a hostile peer would share."""
    fd = os.memfd_create("shrinks", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"x" * SIZE, 0)
    yield fd
    os.close(fd)


def test_a_file_that_shrinks_under_a_region_costs_the_region_only(fd: int) -> None:
    told: list[str] = []
    region = Region(RegionLayout(0, SIZE, 0, 0), os.dup(fd))
    region.on_damage = lambda: told.append("damaged")
    memory = MemoryMap().with_region(region)
    assert memory.read(PAGE, 4) == b"xxxx"
    os.ftruncate(fd, PAGE)
    assert memory.read(0, 4) == b"xxxx"
    assert told == []
    assert memory.read(PAGE - 2, 6) == b"xx\0\0\0\0"
    assert told == ["damaged"]
    region.view[3 * PAGE] = 1
    region.view[PAGE : PAGE + 4].cast("H")[1] = 7
    assert told == ["damaged", "damaged"]
    region.close()


def test_pages_that_are_there_stay_what_they_are(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapping:
        key = guard.guard(mapping, PAGE, lambda: None)
        os.ftruncate(fd, 2 * PAGE)
        assert mapping[5 * PAGE] == 0
        assert mapping[PAGE] == ord("x")
        guard.release(key)


def test_any_other_bus_error_ends_the_process_as_before(tmp_path: Path) -> None:
    script = f"""
import mmap, os
from ballast.memory import guard
def shared():
    fd = os.memfd_create("m")
    os.ftruncate(fd, {SIZE})
    return fd, mmap.mmap(fd, {SIZE})
_, watched = shared()
guard.guard(watched, {PAGE}, lambda: None)
fd, other = shared()
os.ftruncate(fd, 0)
print(other[0])
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGBUS
    assert ended.stdout == b""


def test_a_mapping_that_was_released_is_guarded_no_more() -> None:
    script = f"""
import mmap, os
from ballast.memory import guard
fd = os.memfd_create("m")
os.ftruncate(fd, {SIZE})
mapping = mmap.mmap(fd, {SIZE})
guard.release(guard.guard(mapping, {PAGE}, lambda: None))
os.ftruncate(fd, 0)
print(mapping[0])
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGBUS

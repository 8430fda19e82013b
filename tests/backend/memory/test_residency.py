from __future__ import annotations

import os
import subprocess
import sys

from ballast.memory.residency import allocated_bytes, rss_shmem_bytes
from support.fds import memory_file

MIB = 1 << 20
_NAME = 15
"""PR_SET_NAME."""

ODD_NAME = f"""
import ctypes, sys
ctypes.CDLL(None).prctl({_NAME}, b"\\xff\\xfeqemu")
print(flush=True)
sys.stdin.read()
"""


def test_only_what_was_written_is_allocated() -> None:
    first, second = memory_file(8 * MIB), memory_file(MIB)
    try:
        assert allocated_bytes([first, second]) == 0
        os.pwrite(first, b"x" * MIB, 3 * MIB)
        os.pwrite(second, b"x", 0)
        assert allocated_bytes([first, second]) == MIB + 4096
    finally:
        os.close(first)
        os.close(second)


def test_shared_memory_of_a_process_is_a_number_of_bytes() -> None:
    held = rss_shmem_bytes(os.getpid())
    assert held is not None
    assert held % 1024 == 0


def test_a_process_that_is_not_there_has_none() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert rss_shmem_bytes(gone.pid) is None


def test_a_process_may_have_any_bytes_in_its_name() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ODD_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert rss_shmem_bytes(process.pid) is not None
        process.communicate()

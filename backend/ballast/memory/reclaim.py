"""Gives guest memory back to the host: `fallocate(PUNCH_HOLE)` on the file behind a region.

The memory is a shared file mapped by two processes. `madvise(MADV_DONTNEED)` in ours would only
drop our own page table entries; punching a hole frees the pages for both (fallocate(2)), as
QEMU's `ram_block_discard_range` does. The call releases the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from ballast.memory.map import Piece

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

Discard = Callable[[Piece], int]
"""Gives the whole host pages inside a piece back and returns how many bytes that were."""


def _load_fallocate() -> Callable[[int, int, int, int], int]:
    """Return libc's `fallocate`, which Python's `os` module lacks (it has only the POSIX one)."""
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


_fallocate = _load_fallocate()


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes at `offset` of a file without changing its size.

    Raises:
        OSError: As the system call reports it.
    """
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    while _fallocate(fd, mode, offset, length) != 0:
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def whole_host_pages(piece: Piece) -> tuple[int, int]:
    """Return file offset and length of the whole host pages inside a piece; the length may be 0.

    Rounds inwards, never outwards: a host page of which the guest gave up only a part stays.
    """
    page = piece.region.host_page_bytes
    start = piece.region.layout.file_offset + piece.offset
    first = -(-start // page) * page
    last = (start + piece.length) // page * page
    return first, max(last - first, 0)


def discard(piece: Piece) -> int:
    """Give the whole host pages inside a piece back to the host; return the bytes given.

    Raises:
        OSError: The file system behind the memory cannot punch holes, or refused to.
    """
    offset, length = whole_host_pages(piece)
    if length:
        punch_hole(piece.region.fd, offset, length)
    return length

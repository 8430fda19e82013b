"""Gives many scattered pieces of guest memory back in one system call.

`process_madvise` takes a list of ranges. Since Linux 6.13 a process may give any advice for its own
memory in this way (madvise(2)), MADV_REMOVE among it, which punches a hole in the file behind a
mapping exactly as `fallocate` does. Where arrays of pages have few neighbours, entering the kernel
for each page costs as much as freeing it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

from ballast.memory.map import Piece

DiscardMany = Callable[[Sequence[Piece]], int]
"""Gives pieces back that are made of whole host pages; returns how many bytes that were.

Raises:
    OSError: Not all of them were given back; which ones is not known.
"""

_PROCESS_MADVISE = 440
"""The same number on every architecture."""

_MADV_REMOVE = 9
_MAX_RANGES = 1024
"""UIO_MAXIOV: how many ranges one call takes."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [
    *(ctypes.c_long, ctypes.c_int, ctypes.c_char_p),
    *(ctypes.c_size_t, ctypes.c_int, ctypes.c_uint),
]


def discard_many(pieces: Sequence[Piece]) -> int:
    """Give pieces back; a `DiscardMany`, for whoever `can_discard_many`."""
    given = 0
    for start in range(0, len(pieces), _MAX_RANGES):
        part = pieces[start : start + _MAX_RANGES]
        numbers: list[int] = []
        for piece in part:
            numbers += (piece.region.address + piece.offset, piece.length)
        given += _remove(numbers)
    return given


def _remove(ranges: Sequence[int]) -> int:
    """Punch holes at addresses of ours: address and length of each in turn.

    Raises:
        OSError: Not everything was done.
    """
    wanted = sum(ranges[1::2])
    vector = struct.pack(f"{len(ranges)}Q", *ranges)
    ourselves = os.pidfd_open(os.getpid())
    try:
        done = _syscall(_PROCESS_MADVISE, ourselves, vector, len(ranges) // 2, _MADV_REMOVE, 0)
        error = ctypes.get_errno() if done < 0 else errno.EIO
    finally:
        os.close(ourselves)
    if done != wanted:
        raise OSError(error, f"{done} of {wanted} bytes were removed: {os.strerror(error)}")
    return wanted


@lru_cache(maxsize=1)
def can_discard_many() -> bool:
    """Return whether the kernel does this, found out by doing it to a file of our own."""
    page = mmap.PAGESIZE
    fd = os.memfd_create("ballast-probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 3 * page)
        with mmap.mmap(fd, 3 * page) as mapping:
            mapping[:] = b"\xa5" * len(mapping)
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
            _remove((address, page, address + 2 * page, page))
            return mapping[:] == bytes(page) + b"\xa5" * page + bytes(page)
    except OSError:
        return False
    finally:
        os.close(fd)


def best_discard_many() -> DiscardMany | None:
    """Return `discard_many` where the kernel can do it, otherwise nothing."""
    return discard_many if can_discard_many() else None

"""A large bitmap in shared memory, of which only those pages exist that have a bit set, or had."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable

from ballast.memory.reclaim import punch_hole
from ballast_protocol.errors import StateError

CHUNK_BYTES = 4096
"""What exists or does not: one page of the host, where pages are as small as that."""

CHUNKS = 1 << 17
"""With a bit for each 4 KiB page of a guest: 16 TiB, which is all that a balloon can speak of."""

_FILE_BYTES = CHUNKS * CHUNK_BYTES
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedChunks:
    """Chunks of a memory file that outlives the process; owns its descriptor.

    A killed writer may leave a part of what it was about to set or to clear. Whoever takes over
    does again what was not finished.

    Attributes:
        fd: The file.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Make an empty file, or take over a predecessor's; on failure that stays with the caller.

        Raises:
            StateError: It is no such file.
        """
        self.fd = _make() if fd is None else fd
        if os.fstat(self.fd).st_size != _FILE_BYTES:
            raise StateError("the saved ledger does not have the size that it should have")
        self._mapping = mmap.mmap(self.fd, _FILE_BYTES)
        self._view = memoryview(self._mapping)
        self._chunks = {number: self._slice(number) for number in _numbers(self.fd)}

    def _slice(self, number: int) -> memoryview:
        return self._view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]

    def get(self, number: int) -> memoryview | None:
        """Return a chunk; None if it does not exist."""
        return self._chunks.get(number)

    def make(self, number: int) -> memoryview:
        """Return a chunk that does not exist yet, all zeros."""
        chunk = self._chunks[number] = self._slice(number)
        return chunk

    def numbers(self) -> Iterable[int]:
        """Return the numbers of those that exist."""
        return tuple(self._chunks)

    def clear(self) -> None:
        """Have none exist."""
        self._release()
        punch_hole(self.fd, 0, _FILE_BYTES)

    def _release(self) -> None:
        for chunk in self._chunks.values():
            chunk.release()
        self._chunks.clear()

    def close(self) -> None:
        """Let go of the memory and close the file; calling it again does nothing."""
        if self.fd >= 0:
            self._release()
            self._view.release()
            self._mapping.close()
            os.close(self.fd)
            self.fd = -1


def _make() -> int:
    fd = os.memfd_create("ballast-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _FILE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _numbers(fd: int) -> Iterable[int]:
    """Yield which chunks of a file exist."""
    position = 0
    while position < _FILE_BYTES:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield from range(start // CHUNK_BYTES, -(-position // CHUNK_BYTES))

"""The file that holds one VM's state: a header, cells, records."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from contextlib import ExitStack

from ballast.state.record import OVERHEAD_BYTES, Record, RecordCopy
from ballast_protocol.errors import InternalError, StateError

VERSION = 1
"""Of the layout below; a file of a later one is refused."""

CELLS = 1024
"""How many 32-bit cells there are."""

RECORDS = 16
"""How many records there can be."""

COPY_BYTES = 256 << 10
"""Room for one copy of a record. Memory is taken only for what is written."""

_MAGIC = b"BALLAST\0"
_HEADER = struct.Struct("<8sIIIIQI")
"""Magic, version, cells, records, bytes of a copy, bytes of the file, checksum of what precedes."""

_CELLS_OFFSET = mmap.PAGESIZE
_RECORDS_OFFSET = _CELLS_OFFSET + 4 * CELLS
FILE_BYTES = _RECORDS_OFFSET + RECORDS * 2 * COPY_BYTES

MAX_RECORD_BYTES = COPY_BYTES - OVERHEAD_BYTES
"""The longest contents that a record can have."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_HINT = "Restart the VM: without this state its balloon cannot be served any further."


class StateFile:
    """Shared memory in which a worker leaves what its successor needs; owns its descriptor.

    Attributes:
        fd: The memory file.
        cells: 32-bit numbers, each read and written as a whole; 0 at first.
    """

    def __init__(self, fd: int) -> None:
        """Use `create` or `open`."""
        with ExitStack() as undo:
            mapping = mmap.mmap(fd, FILE_BYTES)
            undo.callback(mapping.close)
            view = memoryview(mapping)
            undo.callback(view.release)
            self._records = [_record(view, number, undo) for number in range(RECORDS)]
            self.cells = view[_CELLS_OFFSET:_RECORDS_OFFSET].cast("I")
            undo.callback(self.cells.release)
            self.fd = fd
            self._closing = undo.pop_all()

    @classmethod
    def create(cls) -> StateFile:
        """Make an empty one.

        Raises:
            OSError: There is no memory, or no descriptor.
        """
        fd = os.memfd_create("ballast-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, FILE_BYTES)
            # Nobody can take the file away under our mapping, not even a bug of ours.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            fields = (_MAGIC, VERSION, CELLS, RECORDS, COPY_BYTES, FILE_BYTES)
            checksum = zlib.crc32(_HEADER.pack(*fields, 0)[:-4])
            os.pwrite(fd, _HEADER.pack(*fields, checksum), 0)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, fd: int) -> StateFile:
        """Take over one that a predecessor left; on failure `fd` stays with the caller.

        Raises:
            StateError: It is damaged, of a later version, or no such file.
        """
        try:
            _check_header(os.pread(fd, _HEADER.size, 0), os.fstat(fd).st_size)
            return cls(fd)
        except OSError as error:
            raise StateError(f"the saved state cannot be read: {error}", hint=_HINT) from error

    def record(self, name: str) -> Record:
        """Return the record of this name, new if there is none; always the same object.

        Raises:
            InternalError: There is no room for another, or it cannot be called that.
        """
        for record in self._records:
            if record.name == name:
                return record
        for record in self._records:
            if not record.name:
                record.claim(name)
                return record
        raise InternalError(f"no room for a record {name!r}")

    def close(self) -> None:
        """Let go of the memory and close the descriptor; calling it again does nothing."""
        if self.fd >= 0:
            self._closing.close()
            os.close(self.fd)
            self.fd = -1


def _record(view: memoryview, number: int, undo: ExitStack) -> Record:
    start = _RECORDS_OFFSET + number * 2 * COPY_BYTES
    first = RecordCopy(view[start : start + COPY_BYTES])
    undo.callback(first.close)
    second = RecordCopy(view[start + COPY_BYTES : start + 2 * COPY_BYTES])
    undo.callback(second.close)
    return Record((first, second))


def _check_header(header: bytes, size: int) -> None:
    """Refuse a file that is not one of ours in this version."""
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise StateError("this is not the saved state of a Ballast VM", hint=_HINT)
    _, version, *layout, checksum = _HEADER.unpack(header)
    if checksum != zlib.crc32(header[:-4]):
        raise StateError("the header of the saved state does not match its checksum", hint=_HINT)
    if version > VERSION:
        raise StateError(
            f"the saved state is of version {version}, and this Ballast knows up to {VERSION}",
            hint="Take over with the version that wrote it, or a later one.",
        )
    if layout != [CELLS, RECORDS, COPY_BYTES, FILE_BYTES] or size != FILE_BYTES:
        raise StateError(f"the saved state of {size} bytes is not laid out as its version says")

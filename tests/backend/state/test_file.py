from __future__ import annotations

import os
import signal
import struct
import zlib

import pytest

from ballast.state.file import CELLS, FILE_BYTES, MAX_RECORD_BYTES, RECORDS, VERSION, StateFile
from ballast_protocol.errors import InternalError, StateError
from support.fds import memory_file, none_left_open


def successor_of(file: StateFile) -> StateFile:
    """Open the same memory once more, as another process would."""
    return StateFile.open(os.dup(file.fd))


def refused(file: StateFile, match: str) -> None:
    fd = os.dup(file.fd)
    with pytest.raises(StateError, match=match):
        StateFile.open(fd)
    os.close(fd)  # it stayed ours


def test_a_successor_finds_records_and_cells() -> None:
    with none_left_open():
        file = StateFile.create()
        file.record("session").save(b"one")
        file.record("device").save(b"two")
        file.cells[0], file.cells[CELLS - 1] = 7, 0xFFFFFFFF
        after = successor_of(file)
        assert after.record("device").load() == b"two"
        assert after.record("session").load() == b"one"
        assert after.record("unheard of").load() is None
        assert (after.cells[0], after.cells[1], after.cells[CELLS - 1]) == (7, 0, 0xFFFFFFFF)
        file.close()
        after.record("session").save(b"three")
        after.close()
        after.close()


def test_a_record_is_the_same_object_each_time() -> None:
    file = StateFile.create()
    assert file.record("session") is file.record("session")
    assert file.record("device") is not file.record("session")
    file.close()


def test_what_a_killed_process_stored_is_there() -> None:
    file = StateFile.create()
    pid = os.fork()
    if not pid:
        file.record("session").save(b"of a child")
        file.cells[3] = 4
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    after = successor_of(file)
    assert (after.record("session").load(), after.cells[3]) == (b"of a child", 4)
    after.close()
    file.close()


def test_there_is_room_for_so_many_records_and_so_much_in_each() -> None:
    file = StateFile.create()
    for number in range(RECORDS):
        file.record(f"r{number}").save(bytes(MAX_RECORD_BYTES))
    with pytest.raises(InternalError, match="no room"):
        file.record("one more")
    after = successor_of(file)
    assert after.record("r15").load() == bytes(MAX_RECORD_BYTES)
    after.close()
    file.close()


def test_memory_is_taken_only_for_what_is_written() -> None:
    file = StateFile.create()
    file.record("session").save(bytes(1000))
    successor_of(file).close()
    assert os.fstat(file.fd).st_blocks * 512 < 200 << 10
    file.close()


def test_nobody_can_shrink_it_under_a_mapping() -> None:
    file = StateFile.create()
    with pytest.raises(PermissionError):
        os.ftruncate(file.fd, 0)
    file.close()


def test_a_later_version_is_refused_by_name() -> None:
    file = StateFile.create()
    header = bytearray(os.pread(file.fd, 32, 0))
    struct.pack_into("<I", header, 8, VERSION + 1)
    os.pwrite(file.fd, bytes(header) + zlib.crc32(header).to_bytes(4, "little"), 0)
    refused(file, f"of version {VERSION + 1}, and this Ballast knows up to {VERSION}")
    file.close()


def test_a_version_laid_out_otherwise_is_refused() -> None:
    file = StateFile.create()
    header = bytearray(os.pread(file.fd, 32, 0))
    struct.pack_into("<I", header, 12, CELLS // 2)
    os.pwrite(file.fd, bytes(header) + zlib.crc32(header).to_bytes(4, "little"), 0)
    refused(file, "not laid out as its version says")
    file.close()


def test_any_damaged_byte_of_the_header_is_noticed() -> None:
    file = StateFile.create()
    good = os.pread(file.fd, 36, 0)
    for offset in range(len(good)):
        bad = bytearray(good)
        bad[offset] ^= 0x10
        os.pwrite(file.fd, bad, 0)
        refused(file, "not the saved state|does not match its checksum")
    os.pwrite(file.fd, good, 0)
    successor_of(file).close()
    file.close()


def test_a_damaged_record_refuses_the_whole_file_and_leaks_nothing() -> None:
    file = StateFile.create()
    file.record("session").save(b"contents")
    where = bytes(os.pread(file.fd, FILE_BYTES, 0)).index(b"contents")
    os.pwrite(file.fd, b"C", where)
    with none_left_open():
        refused(file, "does not match its checksum")
    file.close()


@pytest.mark.parametrize("size", [0, 10, FILE_BYTES])
def test_another_file_is_refused(size: int) -> None:
    fd = memory_file(size)
    with pytest.raises(StateError, match="not the saved state"):
        StateFile.open(fd)
    os.close(fd)


def test_what_is_no_file_is_refused() -> None:
    reader, writer = os.pipe()
    with pytest.raises(StateError, match="cannot be read"):
        StateFile.open(reader)
    os.close(reader)
    os.close(writer)

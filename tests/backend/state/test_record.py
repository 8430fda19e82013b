from __future__ import annotations

import mmap
import struct
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.state.record import OVERHEAD_BYTES, UNFINISHED, Record, RecordCopy
from ballast_protocol.errors import InternalError, StateError

COPY = OVERHEAD_BYTES + 64


class Killed(Exception):
    """The writer was killed."""


class MortalView:
    """Memory whose writer is killed after a given number of bytes; a word is written whole."""

    def __init__(self, view: memoryview, life: list[int]) -> None:
        self._view, self._life = view, life

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, key: int | slice) -> object:
        if isinstance(key, int):
            return self._view[key]
        return MortalView(self._view[key], self._life)

    def __setitem__(self, key: int | slice, value: int | bytes) -> None:
        if isinstance(value, int):
            self._spend(self._view.itemsize)
            self._view[key] = value  # type: ignore[index]
            return
        assert isinstance(key, slice)
        for offset, byte in enumerate(value):
            self._spend(1)
            self._view[key.start + offset] = byte

    def _spend(self, count: int) -> None:
        if self._life[0] < count:
            raise Killed
        self._life[0] -= count


@pytest.fixture
def memory() -> memoryview:
    mapping = mmap.mmap(-1, 2 * COPY)
    return memoryview(mapping)


def opened(memory: memoryview, life: int | None = None) -> Record:
    """Open the record as a worker would that is killed after writing `life` bytes."""
    real = tuple(RecordCopy(memory[start : start + COPY]) for start in (0, COPY))
    record = Record((real[0], real[1]))
    if life is not None:
        left = [life]
        for copy in real:
            copy._view = cast(memoryview, MortalView(copy._view, left))
            copy._sequence = cast(memoryview, MortalView(copy._sequence, left))
    return record


def named(memory: memoryview, life: int | None = None) -> Record:
    record = opened(memory, life)
    if not record.name:
        record.claim("session")
    return record


def test_a_new_record_has_no_name_and_no_contents(memory: memoryview) -> None:
    record = opened(memory)
    assert (record.name, record.load()) == ("", None)


def test_what_was_saved_is_there_for_the_next_worker(memory: memoryview) -> None:
    for number in range(5):
        record = named(memory)
        record.save(b"%d" % number, form=number)
        assert record.load() == b"%d" % number
        found = opened(memory)
        assert (found.name, found.load(), found.form) == ("session", b"%d" % number, number)


def test_empty_contents_are_contents(memory: memoryview) -> None:
    named(memory).save(b"")
    assert opened(memory).load() == b""


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_kill_at_any_byte_leaves_the_old_or_the_new(before: int, memory: memoryview) -> None:
    """The whole point: the successor finds one of both, and can go on saving."""
    old = None
    for number in range(before):
        old = b"old %d" % number
        named(memory).save(old)
    start = bytes(memory)
    seen = set()
    for life in range(8 + COPY + 8):
        memory[:] = start
        try:
            named(memory, life).save(b"new contents, longer than the old")
        except Killed:
            assert opened(memory).load() == old
            seen.add("old")
        else:
            assert opened(memory).load() == b"new contents, longer than the old"
            seen.add("new")
        successor = named(memory)
        successor.save(b"after")
        assert opened(memory).load() == b"after"
    assert seen == {"old", "new"}


@given(st.lists(st.tuples(st.binary(max_size=64), st.integers(0, 160)), min_size=1, max_size=12))
@settings(deadline=None)
def test_one_kill_after_the_other(steps: list[tuple[bytes, int]]) -> None:
    memory = memoryview(mmap.mmap(-1, 2 * COPY))
    expected: bytes | None = None
    for data, life in steps:
        try:
            named(memory, life).save(data)
            expected = data
        except Killed:
            pass
        assert opened(memory).load() == expected


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_any_damaged_bit_is_noticed(saves: int, memory: memoryview) -> None:
    for number in range(saves):
        named(memory).save(b"contents %d" % number)
    newest = COPY * (saves & 1)
    used = OVERHEAD_BYTES + len(b"contents 0")
    for offset in range(newest, newest + used):
        for bit in range(8):
            memory[offset] ^= 1 << bit
            with pytest.raises(StateError):
                opened(memory)
            memory[offset] ^= 1 << bit
    assert opened(memory).load() == b"contents %d" % (saves - 1)


@pytest.mark.parametrize(
    ("even", "odd"),
    [(0, 7), (6, 0), (5, 6), (6, 9), (8, 5), (UNFINISHED, 0)],
    ids=["lost", "first", "swapped", "apart", "behind", "never"],
)
def test_numbers_that_no_writer_leaves_are_refused(even: int, odd: int, memory: memoryview) -> None:
    for start, number in ((0, even), (COPY, odd)):
        copy = RecordCopy(memory[start : start + COPY])
        copy.write(number, b"session", 1, b"x")
    with pytest.raises(StateError, match="do not belong together"):
        opened(memory)


def test_copies_of_two_records_are_refused(memory: memoryview) -> None:
    RecordCopy(memory[COPY:]).write(1, b"session", 1, b"x")
    RecordCopy(memory[:COPY]).write(2, b"device", 1, b"x")
    with pytest.raises(StateError, match="different names"):
        opened(memory)


def test_a_length_beyond_the_copy_is_refused(memory: memoryview) -> None:
    named(memory).save(b"x")
    struct.pack_into("<I", memory, COPY + 16, 65)
    with pytest.raises(StateError, match="claims 65 bytes"):
        opened(memory)


def test_too_much_is_refused_before_anything_is_written(memory: memoryview) -> None:
    record = named(memory)
    record.save(bytes(64))
    with pytest.raises(InternalError, match="do not fit the record 'session'"):
        record.save(bytes(65))
    assert opened(memory).load() == bytes(64)


@pytest.mark.parametrize("name", ["", "ä", "x" * 33])
def test_a_name_is_short_and_plain(name: str, memory: memoryview) -> None:
    with pytest.raises(InternalError, match="cannot be called"):
        opened(memory).claim(name)

"""The ledger's bitmap in shared memory: what a process leaves, the next one finds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ballast.balloon.ledger import CHUNK_BYTES as LEDGER_CHUNK_BYTES
from ballast.state.bitmap import CHUNK_BYTES, CHUNKS, SharedChunks
from ballast_protocol.errors import StateError


@pytest.fixture
def chunks() -> Iterator[SharedChunks]:
    made = SharedChunks()
    yield made
    made.close()


def successor(chunks: SharedChunks) -> SharedChunks:
    return SharedChunks(os.dup(chunks.fd))


def allocated_bytes(chunks: SharedChunks) -> int:
    return os.fstat(chunks.fd).st_blocks * 512


def test_its_chunks_are_those_of_a_ledger() -> None:
    assert CHUNK_BYTES == LEDGER_CHUNK_BYTES
    assert CHUNKS * CHUNK_BYTES * 8 == 1 << 32


def test_a_fresh_one_has_nothing_and_costs_nothing(chunks: SharedChunks) -> None:
    assert tuple(chunks.numbers()) == ()
    assert chunks.get(7) is None
    assert allocated_bytes(chunks) == 0


def test_a_successor_finds_what_was_written(chunks: SharedChunks) -> None:
    for number in (0, 5, 6, CHUNKS - 1):
        chunks.make(number)[number % 100] = 9
    after = successor(chunks)
    assert sorted(after.numbers()) == [0, 5, 6, CHUNKS - 1]
    found = after.get(CHUNKS - 1)
    assert found is not None
    assert found[(CHUNKS - 1) % 100] == 9
    assert bytes(found).count(0) == CHUNK_BYTES - 1
    after.close()


def test_two_processes_see_the_same_memory(chunks: SharedChunks) -> None:
    mine = chunks.make(3)
    mine[0] = 1
    after = successor(chunks)
    theirs = after.get(3)
    assert theirs is not None
    mine[1] = 2
    assert theirs[1] == 2
    after.close()


def test_clearing_gives_the_memory_back(chunks: SharedChunks) -> None:
    for number in range(50):
        chunks.make(number)[:] = b"\xff" * CHUNK_BYTES
    assert allocated_bytes(chunks) >= 50 * CHUNK_BYTES
    chunks.clear()
    assert tuple(chunks.numbers()) == ()
    assert allocated_bytes(chunks) == 0
    assert bytes(chunks.make(0)) == bytes(CHUNK_BYTES)


@pytest.mark.parametrize("size", [0, CHUNK_BYTES, CHUNKS * CHUNK_BYTES + 1])
def test_a_file_of_another_size_is_refused(size: int) -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, size)
    with pytest.raises(StateError, match="size"):
        SharedChunks(fd)
    os.close(fd)


def test_nobody_can_make_it_smaller(chunks: SharedChunks) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(chunks.fd, 0)


def test_closing_twice_does_nothing(chunks: SharedChunks) -> None:
    chunks.make(1)
    chunks.close()
    chunks.close()
    assert tuple(chunks.numbers()) == ()

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ballast.transport.kept import KeptFds
from ballast_protocol.errors import StateError
from support.fds import memory_file
from support.stores import Processes, processes


@pytest.fixture
def store() -> Iterator[Processes]:
    with processes() as store:
        yield store


@pytest.fixture
def file(store: Processes) -> Iterator[int]:
    fd = memory_file(4096)
    yield fd
    os.close(fd)


def test_what_is_put_is_there_at_once_and_what_is_dropped_stays_until_it_is_settled(
    store: Processes, file: int
) -> None:
    kept = KeptFds(store.part())
    kept.put("page", file)
    kept.put("outbox", file)
    assert store.held == {"page", "outbox"}
    kept.drop("page")
    assert store.held == {"page", "outbox"}
    kept.settle()
    assert store.held == {"outbox"}
    kept.settle()
    assert store.held == {"outbox"}


def test_what_comes_back_before_it_is_settled_stays(store: Processes, file: int) -> None:
    kept = KeptFds(store.part())
    kept.put("page", file)
    kept.drop("page")
    kept.put("page", file)
    kept.settle()
    assert store.held == {"page"}


def test_what_is_another_sessions_is_left_alone(store: Processes, file: int) -> None:
    part = store.part()
    part.put("listener", file)
    kept = KeptFds(part)
    kept.drop("listener")
    kept.put("page", file)
    kept.close()
    assert store.held == {"listener"}


def test_a_successor_lets_go_of_what_it_took_and_put(store: Processes, file: int) -> None:
    KeptFds(store.part()).put("page", file)
    kept = KeptFds(store.part())
    os.close(kept.take("page"))
    kept.put("outbox", file)
    assert store.held == {"page", "outbox"}
    kept.close()
    assert store.held == set()


def test_what_is_missing_is_told_by_its_name(store: Processes) -> None:
    with pytest.raises(StateError, match=r"irq\.2\.1"):
        KeptFds(store.part()).take("irq.2.1")

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import pytest

from ballast.state.document import Document
from ballast.state.file import StateFile
from ballast_protocol.errors import StateError


class Phase(Enum):
    IDLE = "idle"


@dataclass
class Ring:
    size: int
    addresses: tuple[int, int, int]
    held: int | None = None


@dataclass
class Session:
    phase: Phase = Phase.IDLE
    rings: list[Ring] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)


@dataclass
class Older:
    phase: Phase = Phase.IDLE


@pytest.fixture
def file() -> Iterator[StateFile]:
    file = StateFile.create()
    yield file
    file.close()


def test_a_dataclass_comes_back_as_it_was(file: StateFile) -> None:
    document = Document(file.record("session"), Session)
    assert document.load() is None
    value = Session(Phase.IDLE, [Ring(128, (1, 2, (1 << 64) - 1)), Ring(0, (0, 0, 0), 3)], {5: 6})
    document.save(value)
    assert document.load() == value


def test_versions_may_differ_in_fields_with_a_default(file: StateFile) -> None:
    Document(file.record("session"), Session).save(Session(values={1: 2}))
    assert Document(file.record("session"), Older).load() == Older()
    Document(file.record("session"), Older).save(Older())
    assert Document(file.record("session"), Session).load() == Session()


def test_a_later_format_is_refused_by_name(file: StateFile) -> None:
    Document(file.record("session"), Session, form=3).save(Session())
    with pytest.raises(
        StateError, match="'session' is of format 3, and this Ballast knows up to 2"
    ):
        Document(file.record("session"), Session, form=2).load()
    assert Document(file.record("session"), Session, form=4).load() == Session()


@pytest.mark.parametrize("data", [b"", b"{", b'{"phase": "unknown"}', b'{"rings": [{"size": 1}]}'])
def test_what_makes_no_sense_is_refused(data: bytes, file: StateFile) -> None:
    file.record("session").save(data)
    with pytest.raises(StateError, match="'session' makes no sense"):
        Document(file.record("session"), Session).load()

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ballast.guest_link.link import GuestLink
from support.agent_peer import Events


@pytest.fixture
def folder() -> Iterator[Path]:
    # Paths of sockets are short; those of pytest's folders can be too long.
    with tempfile.TemporaryDirectory(prefix="bal-") as name:
        yield Path(name)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def link(folder: Path, events: Events) -> AsyncIterator[GuestLink]:
    link = GuestLink(folder / "agent.sock", on_event=events)
    await link.start()
    yield link
    await link.close()

"""The counter that shows that an event loop turns."""

from __future__ import annotations

import os

import pytest

from ballast.daemon import alive
from ballast.daemon.alive import SignOfLife
from ballast.keeper.vault import ALIVE
from ballast.streams.fdstore import MemoryStore
from support.backend import until
from support.fds import none_left_open


async def test_it_adds_up_and_waits_for_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "BEAT_SECONDS", 0.001)
    with none_left_open(), MemoryStore() as store:
        life = SignOfLife(store)
        held = store.held[ALIVE]
        assert os.eventfd_read(held) == 1
        os.eventfd_write(held, (1 << 64) - 2)
        life._beat()
        os.eventfd_read(held)
        seen = 0

        def has_beaten() -> bool:
            nonlocal seen
            try:
                seen += os.eventfd_read(held)
            except BlockingIOError:
                return False
            return seen > 3

        await until(has_beaten)
        life.close()

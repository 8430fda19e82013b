"""What operators asked for is there in the next process, or its loss is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.daemon import wishes
from ballast.daemon.blocks import BlocksState
from ballast.daemon.config import VmConfig
from ballast.daemon.kept import Kept
from ballast.daemon.paths import VmPaths
from ballast.daemon.vm import VirtualMachine
from ballast.daemon.wishes import Settings, Wishes
from ballast.keeper.client import Takeover
from ballast.mqtt.promises import Awaited, Owed, Promises
from ballast.streams.fdstore import MemoryStore, VmStore
from ballast_protocol.errors import StateError
from support.fds import none_left_open

MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with none_left_open(), MemoryStore() as store:
        yield store


def part(store: MemoryStore) -> VmStore:
    return VmStore(store, "vm", store.take_all())


def test_everything_comes_back(store: MemoryStore) -> None:
    first = Wishes(part(store))
    assert (first.governor(), first.blocks(), first.settings()) == (None, None, None)
    assert not store.held
    state = BlocksState(wanted_bytes=5, shares={0: 3}, boot_id="x")
    first.save_governor({"version": 1, "target-bytes": 7})
    first.save_blocks(state)
    first.save_settings(Settings(9))
    promised = Promises((Awaited(1, "t", None, "ff"),), (Owed("r", "{}"),))
    first.save_promises(promised)
    second = Wishes(part(store))
    assert second.governor() == {"version": 1, "target-bytes": 7}
    assert second.blocks() == state
    assert second.settings() == Settings(9)
    assert second.promises() == promised
    left = store.take_all()
    wishes.check(left)
    for fd in left.values():
        os.close(fd)
    first.close()
    second.close()
    assert not store.held


def damaged(store: MemoryStore) -> None:
    os.pwrite(store.held["vm/wishes"], b"XX", 10)


@pytest.mark.parametrize("what", ["damage", "governor", "settings"])
def test_what_is_not_understood_is_told_and_left_out(
    store: MemoryStore, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Wishes(part(store))
    first.save_settings(Settings(9))
    if what == "governor":
        first._record("governor").save(b"{}", 99)
    elif what == "settings":
        first._record("settings").save(b"{}", 99)
    else:
        damaged(store)
    left = store.take_all()
    with pytest.raises(StateError):
        wishes.check(left)
    for fd in left.values():
        os.close(fd)
    second = Wishes(part(store))
    assert second.governor() is None
    assert (second.settings() is None) == (what != "governor")
    assert "could not be taken over" in caplog.text
    first.close()
    second.close()


async def test_a_vm_goes_on_with_what_was_asked_of_it(store: MemoryStore, tmp_path: Path) -> None:
    config, paths = VmConfig(name="vm", target=512 * MIB), VmPaths("vm", tmp_path)
    first = VirtualMachine(config, paths=paths, store=part(store))
    await first.start()
    first.set_target(256 * MIB)
    first.governor.hold("maintenance")
    first.stats_polling_interval = 77
    first.device.metrics.inflate_pages = 12
    first.device.blocks.metrics.reports = 2
    told = first.status()
    kept = Kept("parent", Takeover("restart"), os.getpid())
    second = VirtualMachine(config, paths=paths, store=part(store), kept=kept)
    await second.start()
    assert second.target_bytes == 256 * MIB
    assert second.device.target_bytes == 256 * MIB
    assert second.governor.status()["hold"] == first.governor.status()["hold"]
    assert second.stats_polling_interval == 77
    assert second.status()["counters"] == told["counters"]
    assert second.device.metrics.inflate_pages == 12
    assert second.device.blocks.metrics.reports == 2
    await second.close()
    assert not paths.directory.exists()
    await first.close()
    assert not store.held

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.streams.fdstore import no_store
from ballast.transport.kept import KeptFds
from ballast.transport.vfio_user import config as config_module
from ballast.transport.vfio_user.config import ConfigSharing
from ballast.transport.vfio_user.model import BalloonModel
from ballast.transport.vfio_user.page import ConfigPage
from ballast.virtio_pci.layout import Layout, Variant, make_layout
from ballast_protocol.errors import InternalError, StateError
from support.backend import Listener, until
from support.fds import none_left_open
from support.stores import processes

RAM = 16 << 20
FEATURES = 1 << 32


def layout(variant: Variant) -> Layout:
    queues, size = BalloonModel.queue_count, BalloonModel.config_size
    return make_layout(variant, queue_count=queues, config_size=size)


MAPPED = layout(Variant.MSIX_MAPPED)


@pytest.fixture
def device() -> BalloonDevice:
    return BalloonDevice(Listener(), ram_bytes=RAM)


class Guest:
    """What a client maps, and the guest reads and writes."""

    def __init__(self, sharing: ConfigSharing) -> None:
        assert MAPPED.mapped is not None
        offset = MAPPED.mapped.offset
        self.page = mmap.mmap(sharing.page.fd, MAPPED.mapped.length, offset=offset)

    def get(self, field: int) -> int:
        return int.from_bytes(self.page[4 * field : 4 * field + 4], "little")

    def put(self, field: int, value: int) -> None:
        self.page[4 * field : 4 * field + 4] = value.to_bytes(4, "little")


@pytest.fixture
async def sharing(device: BalloonDevice) -> ConfigSharing:
    return ConfigSharing(device, MAPPED, KeptFds(no_store()))


@pytest.fixture
def guest(sharing: ConfigSharing) -> Iterator[Guest]:
    found = Guest(sharing)
    yield found
    found.page.close()
    sharing.close()


async def test_device_and_guest_write_their_own_fields(
    device: BalloonDevice, sharing: ConfigSharing, guest: Guest
) -> None:
    guest.put(1, 5)
    guest.put(3, 0xAA)
    device.set_target(RAM // 2)
    sharing.show()
    assert [guest.get(field) for field in range(4)] == [RAM // 2 >> 12, 5, 0, 0xAA]
    sharing.take()
    assert device.actual_pages == 0  # no driver is at work yet
    sharing.driver_begins()
    device.start(FEATURES | 1 << 4, fresh=True)
    sharing.take()
    assert (device.actual_pages, device.config.poison_val) == (5, 0xAA)
    device.stop()
    sharing.driver_ends()
    assert [guest.get(field) for field in (1, 3)] == [0, 0]


async def test_the_page_is_watched_after_use_until_the_driver_ends(
    device: BalloonDevice,
    sharing: ConfigSharing,
    guest: Guest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config_module, "WATCH_SECONDS", (0.0, 0.0))
    device.start(FEATURES, fresh=True)
    sharing.watch()
    for pages in (1, 2, 3):
        guest.put(1, pages)
        await until(lambda pages=pages: device.actual_pages == pages)  # type: ignore[misc]
    sharing.driver_ends()
    guest.put(1, 4)
    await asyncio.sleep(0.01)
    assert device.actual_pages == 3


async def test_nothing_is_looked_at_after_the_end(
    device: BalloonDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "WATCH_SECONDS", (0.0, 0.0))
    with none_left_open():
        sharing = ConfigSharing(device, MAPPED, KeptFds(no_store()))
        device.start(FEATURES, fresh=True)
        sharing.watch()
        sharing.close()
        await asyncio.sleep(0.01)
        for action in (sharing.show, sharing.take, sharing.watch, sharing.driver_ends):
            action()
        sharing.close()


async def test_an_unmapped_config_space_has_no_page(device: BalloonDevice) -> None:
    with none_left_open():
        sharing = ConfigSharing(device, layout(Variant.MSIX), KeptFds(no_store()))
        device.start(FEATURES, fresh=True)
        device.write_actual(7)
        for action in (sharing.show, sharing.take, sharing.watch, sharing.driver_begins):
            action()
        assert device.actual_pages == 7
        with pytest.raises(InternalError):
            assert sharing.page.fd
        sharing.close()


def test_a_page_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "ftruncate", fail)
    with none_left_open(), pytest.raises(OSError, match="full"):
        ConfigPage(MAPPED)


def test_a_layout_without_anything_to_map_has_no_page() -> None:
    with pytest.raises(InternalError):
        ConfigPage(layout(Variant.INTX))


# A successor


async def test_a_successor_has_the_page_that_the_guest_has_mapped(device: BalloonDevice) -> None:
    with processes() as store:
        before = ConfigSharing(device, MAPPED, KeptFds(store.part()))
        guest = Guest(before)
        guest.put(1, 9)
        before.close()
        device.start(FEATURES, fresh=True)
        after = ConfigSharing(device, MAPPED, KeptFds(store.part()), is_resumed=True)
        after.take()
        assert device.actual_pages == 9
        device.set_target(RAM - 4096)
        after.show()
        assert guest.get(0) == 1
        guest.page.close()
        after.close()


async def test_a_page_that_is_missing_is_told_of(device: BalloonDevice) -> None:
    with processes() as store, pytest.raises(StateError, match="page"):
        ConfigSharing(device, MAPPED, KeptFds(store.part()), is_resumed=True)


def test_whether_the_page_was_passed_on_can_be_asked_for() -> None:
    page = ConfigPage(MAPPED)
    successor = ConfigPage(MAPPED, os.dup(page.fd))
    try:
        assert not successor.was_passed_on(80)
        sent = page.pass_on(80)
        mapped = mmap.mmap(sent, mmap.PAGESIZE)
        os.close(sent)
        assert successor.was_passed_on(80)
        assert not successor.was_passed_on(160)
        mapped.close()
        assert not successor.was_passed_on(80)
        os.close(page.pass_on(80))  # as in a process that was killed before it sent it
        assert not successor.was_passed_on(80)
    finally:
        successor.close()
        page.close()

"""The device's config space and its life: what is believed, what is kept, what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.balloon.features import TRANSPORT_FEATURES
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import (
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    HintCommand,
    pack_statistics,
)
from support.backend import Listener
from support.balloon_guest import FREE, PAGES, RAM_BYTES, Guest, guest_with
from support.driver import PAGE_SIZE, GuestRam, RamBlock
from support.memory import mapped


@pytest.fixture
def guest() -> Iterator[Guest]:
    with guest_with() as guest:
        yield guest


@pytest.fixture
def device() -> BalloonDevice:
    return BalloonDevice(Listener(), ram_bytes=1 << 30)


# The config space


def test_only_a_running_driver_sets_actual(device: BalloonDevice) -> None:
    device.write_config(BalloonConfig(actual=7))
    assert device.actual_pages == 0
    device.start(0, fresh=True)
    device.write_config(BalloonConfig(actual=7))
    assert device.actual_bytes == (1 << 30) - 7 * PAGE_SIZE
    device.stop()
    device.write_config(BalloonConfig(actual=9))
    assert device.actual_pages == 7


def test_poison_is_taken_only_while_stopped_and_only_if_negotiated(device: BalloonDevice) -> None:
    device.write_config(BalloonConfig(poison_val=5))
    device.start(0, fresh=True)
    assert device.config.poison_val == 0
    device.stop()
    device.write_config(BalloonConfig(poison_val=5))
    device.start(int(BalloonFeature.PAGE_POISON), fresh=True)
    assert device.config.poison_val == 5
    device.write_config(BalloonConfig(poison_val=6))
    assert device.config.poison_val == 5
    device.stop()
    device.start(int(BalloonFeature.PAGE_POISON), fresh=True)
    assert device.config.poison_val == 0


def test_a_stale_target_in_a_config_write_is_never_believed(device: BalloonDevice) -> None:
    device.set_target(1 << 29)
    stale = BalloonConfig(num_pages=1, free_page_hint_cmd_id=0x80000005)
    device.write_config(stale)
    device.start(0, fresh=True)
    device.write_config(stale)
    assert device.config.num_pages == (1 << 29) // PAGE_SIZE
    assert device.config.free_page_hint_cmd_id == HintCommand.STOP


def test_an_actual_larger_than_the_machine_is_ignored(device: BalloonDevice) -> None:
    device.start(0, fresh=True)
    device.write_config(BalloonConfig(actual=(1 << 30) // PAGE_SIZE + 1))
    assert (device.actual_pages, device.metrics.config_writes_ignored) == (0, 1)
    device.write_config(BalloonConfig(actual=(1 << 30) // PAGE_SIZE))
    assert device.actual_bytes == 0


def test_an_unchanged_actual_is_no_news() -> None:
    listener = Listener()
    device = BalloonDevice(listener, ram_bytes=1 << 30)
    device.start(0, fresh=True)
    for _ in range(3):
        device.write_config(BalloonConfig(actual=3))
    assert listener.actuals == 1


@pytest.mark.parametrize(
    ("target", "pages"),
    [(1, (1 << 30) // PAGE_SIZE - 1), ((1 << 30) - 1, 0), (1 << 30, 0), (1 << 40, 0)],
)
def test_a_target_becomes_whole_pages(device: BalloonDevice, target: int, pages: int) -> None:
    device.set_target(target)
    assert device.config.num_pages == pages


def test_a_machine_larger_than_the_field_gets_as_much_as_it_can_say() -> None:
    device = BalloonDevice(Listener(), ram_bytes=1 << 45)
    device.set_target(1 << 30)
    assert device.config.num_pages == 0xFFFFFFFF
    assert len(device.config.pack()) == BalloonConfig.SIZE


@pytest.mark.parametrize("target", [0, -1])
def test_a_target_must_be_positive(device: BalloonDevice, target: int) -> None:
    with pytest.raises(OperatorError):
        device.set_target(target)
    assert device.target_bytes is None


# Life


def test_going_on_keeps_everything(guest: Guest) -> None:
    guest.inflate(*FREE[:8])
    guest.device.write_config(BalloonConfig(actual=8))
    guest.send(BalloonQueue.STATS, pack_statistics([(4, 1)]))
    guest.device.stop()
    assert guest.device.actual_bytes == RAM_BYTES - 8 * PAGE_SIZE
    guest.device.start(guest.features, fresh=False)
    assert (guest.held(), guest.device.actual_pages) == (set(FREE[:8]), 8)
    assert guest.device.statistics.values == {4: 1}


def test_beginning_anew_clears_everything_but_the_target(guest: Guest) -> None:
    guest.device.set_target(RAM_BYTES // 2)
    guest.inflate(*FREE[:8])
    guest.device.write_config(BalloonConfig(actual=8))
    guest.send(BalloonQueue.STATS, pack_statistics([(4, 1)]))
    guest.device.start_hinting()
    news = guest.listener.actuals
    guest.device.stop()
    guest.device.start(guest.features, fresh=True)
    assert (guest.held(), guest.device.actual_pages) == (set(), 0)
    assert (guest.device.statistics.values, guest.device.statistics.last_update) == ({}, 0)
    assert guest.device.config == BalloonConfig(num_pages=PAGES // 2)
    assert guest.listener.actuals == news + 1


def test_who_writes_to_the_config_space_while_stopped_is_a_new_driver(guest: Guest) -> None:
    guest.inflate(*FREE[:8])
    guest.device.stop()
    guest.device.write_config(BalloonConfig(poison_val=0xAA))
    guest.device.start(guest.features, fresh=False)
    assert (guest.held(), guest.device.config.poison_val) == (set(), 0xAA)


def test_a_disconnect_leaves_only_the_target() -> None:
    with guest_with() as guest:
        guest.device.set_target(RAM_BYTES // 2)
        guest.inflate(FREE[0])
        guest.device.write_config(BalloonConfig(actual=1))
        guest.device.disconnect()
        assert guest.device.actual_bytes is None
        assert (guest.held(), guest.device.ram_bytes) == (set(), 0)
        assert guest.device.config == BalloonConfig()
        assert guest.device.target_bytes == RAM_BYTES // 2


def test_a_failure_of_an_earlier_vmm_is_forgotten(device: BalloonDevice) -> None:
    device.pages.last_failure = "Operation not supported"
    device.disconnect()
    assert device.pages.last_failure == ""


def test_settled_means_that_the_guest_says_so(device: BalloonDevice) -> None:
    assert not device.is_settled
    device.start(0, fresh=True)
    assert device.is_settled
    device.set_target((1 << 30) - 4 * PAGE_SIZE)
    assert not device.is_settled
    device.write_config(BalloonConfig(actual=4))
    assert device.is_settled


def test_a_machine_that_grows_gets_a_new_target() -> None:
    with (
        GuestRam.of(RamBlock(0, RAM_BYTES), RamBlock(1 << 32, RAM_BYTES)) as ram,
        mapped(ram) as both,
    ):
        one, dimm = both.without_region(1 << 32, RAM_BYTES)
        listener = Listener()
        device = BalloonDevice(listener)
        device.set_target(RAM_BYTES)
        device.set_memory(one)
        device.start(0, fresh=True)
        assert (device.config.num_pages, listener.configs) == (0, 1)
        device.set_memory(both)
        assert (device.config.num_pages, listener.configs) == (PAGES, 2)
        device.stop()
        device.set_memory(one)
        assert (device.config.num_pages, listener.configs) == (0, 3)
        assert dimm in both.regions


def test_a_size_that_the_operator_gave_stays() -> None:
    with guest_with() as guest:
        device = BalloonDevice(Listener(), ram_bytes=1 << 30)
        device.set_memory(guest.memory)
        assert device.ram_bytes == 1 << 30


def test_what_is_offered() -> None:
    offered = BalloonDevice(Listener(), balloon_features=BalloonFeature.DEFLATE_ON_OOM).offered
    assert offered == int(BalloonFeature.DEFLATE_ON_OOM) | int(TRANSPORT_FEATURES)

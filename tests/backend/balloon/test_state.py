"""A device that is saved and restored goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydantic import TypeAdapter

from ballast.balloon.device import BalloonDevice
from ballast.balloon.hinting import HintState
from ballast.balloon.ledger import Ledger
from ballast.balloon.state import DeviceState, restore, revision, save
from ballast_protocol.virtio.balloon import BalloonQueue, pack_statistics
from support.backend import Listener
from support.balloon_guest import ALL, FREE, NOW, Guest, guest_with

AS_TEXT = TypeAdapter(DeviceState)


def successor(before: Guest, cells: list[int], listener: Listener | None = None) -> BalloonDevice:
    """Return what another process makes of what the old one left, which is nothing but text."""
    text = AS_TEXT.dump_json(save(before.device))
    device = BalloonDevice(listener or Listener(), balloon_features=ALL, cells=cells)
    restore(device, AS_TEXT.validate_json(text))
    device.set_memory(before.memory)
    return device


def test_a_running_device() -> None:
    with guest_with() as before:
        cells = [0]
        before.device._cells = cells
        before.device.write_actual(9)
        listener = Listener()
        device = successor(before, cells, listener)
        assert (listener.configs, listener.actuals, listener.drivers) == (0, 0, 0)
        assert save(device) == save(before.device)
        assert device.config == before.device.config
        assert (device.actual_pages, device.actual_bytes) == (9, before.device.actual_bytes)
        assert device.role(2) is BalloonQueue.STATS
        assert device.pages.collects


def test_a_fresh_device() -> None:
    device = BalloonDevice(Listener(), balloon_features=ALL)
    restore(device, save(BalloonDevice(Listener(), balloon_features=ALL)))
    assert save(device) == DeviceState(hint_command=device.hinting.command_id)


def test_what_a_driver_wrote_before_it_starts_is_not_forgotten() -> None:
    device, after = (BalloonDevice(Listener(), balloon_features=ALL) for _ in range(2))
    device.write_poison(0xAA)
    restore(after, save(device))
    after.start(int(ALL), fresh=True)
    assert after.config.poison_val == 0xAA


def test_the_held_statistics_are_read_again_and_not_taken_for_new_ones() -> None:
    with guest_with() as before:
        before.drivers[BalloonQueue.STATS].add_out(pack_statistics([(4, 77)]))
        before.process(BalloonQueue.STATS)
        device = successor(before, [0])
        assert device.statistics.values == {4: 77}
        queue = before.queues[BalloonQueue.STATS]
        queue.adopt_used_index()
        queue.state.next_avail = queue.state.next_used
        device.process(before.indices[BalloonQueue.STATS], queue, NOW + 100)
        assert device.statistics.held_head is not None
        assert device.statistics.updates == 0
        assert device.statistics.last_update == int(NOW)
        assert device.statistics.give_back(queue) is True


def test_a_round_of_hints_ends_and_its_number_is_not_used_again() -> None:
    with guest_with() as before:
        before.device.start_hinting()
        command = before.device.config.free_page_hint_cmd_id
        device = successor(before, [0])
        assert device.hinting.state is HintState.DONE
        device.start_hinting()
        assert device.config.free_page_hint_cmd_id == command + 1


def test_a_size_that_was_given_is_not_taken_from_a_predecessor() -> None:
    device = BalloonDevice(Listener(), balloon_features=ALL, ram_bytes=1 << 30)
    restore(device, replace(save(device), ram_bytes=1 << 20))
    assert device.ram_bytes == 1 << 30


def test_a_ledger_that_was_left_is_the_devices() -> None:
    left = Ledger()
    left.add(FREE[0], 5)
    device = BalloonDevice(Listener(), balloon_features=ALL, ledger=left)
    assert device.pages.ledger.count == 5


def test_a_revision_tells_of_every_change() -> None:
    with guest_with() as found:
        device = found.device
        changes: list[Callable[[], object]] = [
            lambda: device.start_hinting(),
            lambda: found.send(BalloonQueue.STATS, pack_statistics([(4, 77)])),
            lambda: device.finish_hinting(),
            lambda: device.stop(),
            lambda: device.write_poison(7),
            lambda: device.start(int(ALL), fresh=True),
            lambda: device.disconnect(),
        ]
        for change in changes:
            before = save(device), revision(device)
            change()
            assert save(device) != before[0]
            assert revision(device) != before[1]

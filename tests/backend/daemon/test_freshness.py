from __future__ import annotations

from ballast.balloon.device import BalloonDevice
from ballast.daemon.freshness import Freshness
from support.backend import Listener


class Guest:
    """A device that gets statistics, and two clocks."""

    def __init__(self) -> None:
        self.steady, self.wall = 50.0, 1000.0
        self.device = BalloonDevice(Listener())
        self.fresh = self.new_process()

    def new_process(self) -> Freshness:
        return Freshness(
            self.device, lambda: True, clock=lambda: self.steady, unix_seconds=lambda: self.wall
        )

    def send(self, *, is_new: bool = True) -> None:
        statistics = self.device.statistics
        statistics.last_update, statistics.updates = (
            int(self.wall),
            statistics.updates + is_new,
        )
        self.fresh.note()


def test_what_never_came_has_no_age() -> None:
    assert Guest().fresh.age_seconds is None


def test_a_clock_that_is_set_back_makes_nothing_new() -> None:
    guest = Guest()
    guest.send()
    guest.steady, guest.wall = 60.0, 10.0
    assert guest.fresh.age_seconds == 10.0


def test_a_repeated_buffer_is_not_new() -> None:
    guest = Guest()
    guest.send()
    guest.steady += 5
    guest.send(is_new=False)
    assert guest.fresh.age_seconds == 5.0
    guest.send()
    assert guest.fresh.age_seconds == 0.0


def test_what_a_predecessor_left_is_no_younger_than_we_are() -> None:
    guest = Guest()
    guest.send()
    fresh = guest.new_process()
    guest.steady, guest.wall = 53.0, 1013.0
    assert fresh.age_seconds == 13.0
    guest.wall = 900.0
    assert fresh.age_seconds == 3.0

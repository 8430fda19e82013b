from __future__ import annotations

import asyncio

import pytest

from ballast.balloon.device import BalloonDevice
from ballast.daemon.telling import SizeTelling
from support.backend import Listener, until

RAM = 64 << 20
FEATURES = 1 << 32


class Told:
    """A device on its way to half of its memory, and the sizes that were told."""

    def __init__(self) -> None:
        self.device = BalloonDevice(Listener(), ram_bytes=RAM)
        self.device.start(FEATURES, fresh=True)
        self.device.set_target(RAM // 2)
        self.sizes: list[int] = []
        self.telling = SizeTelling(self.device, lambda: self.sizes.append(self.device.actual_pages))

    def move(self, pages: int) -> None:
        self.device.write_actual(pages)
        self.telling.changed()


@pytest.fixture
async def told() -> Told:
    return Told()


async def test_on_the_way_the_last_of_many_sizes_is_told(told: Told) -> None:
    for pages in range(1, 100):
        told.move(pages)
    assert told.sizes == []
    await until(lambda: told.sizes == [99])
    told.move(100)
    await until(lambda: told.sizes == [99, 100])


async def test_the_size_that_was_wanted_is_told_at_once_and_once(told: Told) -> None:
    told.move(1)
    told.move(told.device.target_pages)
    assert told.sizes == [told.device.target_pages]
    await asyncio.sleep(0.03)
    assert told.sizes == [told.device.target_pages]


async def test_nothing_is_told_after_the_end(told: Told) -> None:
    told.move(1)
    told.telling.close()
    await asyncio.sleep(0.03)
    assert told.sizes == []

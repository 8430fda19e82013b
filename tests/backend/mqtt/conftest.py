from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast_images.broker import Broker, find_broker
from support.mosquitto import Mosquitto
from support.relay import Relay, relay_to


@pytest.fixture(scope="session")
def programs() -> Broker:
    """A mosquitto and its clients, provisioned on first use."""
    return find_broker()


@pytest.fixture
async def broker(programs: Broker, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A mosquitto that listens, on a port of its own."""
    broker = Mosquitto(programs, tmp_path)
    await broker.start()
    yield broker
    await broker.kill()


@pytest.fixture
async def relay(broker: Mosquitto) -> AsyncIterator[Relay]:
    """A way to the broker that tests can cut."""
    async with relay_to(broker.port) as relay:
        yield relay

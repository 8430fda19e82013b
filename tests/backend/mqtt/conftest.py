from __future__ import annotations

import pytest

from ballast_images.broker import Broker, find_broker


@pytest.fixture(scope="session")
def programs() -> Broker:
    """A mosquitto and its clients, provisioned on first use."""
    return find_broker()

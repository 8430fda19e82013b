"""The engine and the images of all tests in containers; without them nothing can be tried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ballast_images.container_images import VM, build_images, checkout
from ballast_images.engine import Engine, find_engine, prove
from ballast_images.progress import ConsoleReporter
from ballast_protocol.errors import OperatorError
from support.containers import Lab, running_lab


@pytest.fixture(scope="session")
def some_engine() -> Engine:
    """An engine that answers."""
    try:
        return find_engine()
    except OperatorError as error:
        pytest.skip(f"{error}. {error.hint}")


@pytest.fixture(scope="session")
def engine(some_engine: Engine) -> Engine:
    """An engine that runs our images, which are built from these sources if they were not yet."""
    build_images(some_engine, checkout(), ConsoleReporter())
    return prove(some_engine, VM.name)


@pytest.fixture(scope="module")
def lab(engine: Engine) -> Iterator[Lab]:
    """A guest whose QEMU is in one container and whose balloon is in another."""
    with running_lab(engine) as running:
        yield running

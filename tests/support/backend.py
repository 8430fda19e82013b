"""A device and its vhost-user server as the daemon would wire them, for tests to drive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ballast.balloon.device import BalloonDevice
from ballast.balloon.features import DEFAULT_FEATURES
from ballast.transport.base import Transport
from ballast.transport.vhost_user.server import VhostUserServer
from ballast_protocol.virtio.balloon import BalloonFeature
from support.link import PATIENCE_SECONDS


class Listener:
    """Counts what the device tells, and passes config changes on as the daemon does.

    Attributes:
        transport: Where config changes go; None if there is none.
        configs: How often the config space has changed.
        actuals: How often the guest's size has changed.
        statistics: How often statistics came.
        drivers: How often a driver began, stopped or went.
    """

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self.configs = 0
        self.actuals = 0
        self.statistics = 0
        self.drivers = 0

    def config_changed(self) -> None:
        self.configs += 1
        if self.transport is not None:
            self.transport.notify_config()

    def actual_changed(self) -> None:
        self.actuals += 1

    def statistics_received(self) -> None:
        self.statistics += 1

    def driver_changed(self) -> None:
        self.drivers += 1


@dataclass
class Backend:
    """A balloon that listens.

    Attributes:
        path: Where a front-end connects.
        device: The device.
        server: Its transport.
        listener: What it told.
    """

    path: Path
    device: BalloonDevice
    server: VhostUserServer
    listener: Listener

    @property
    def held(self) -> set[int]:
        """The pages that are in the ledger."""
        runs = self.device.pages.ledger.runs()
        return {page for first, count in runs for page in range(first, first + count)}

    @property
    def problem(self) -> str:
        """What the present connection has to complain of."""
        assert self.server.session is not None
        return self.server.session.problem

    async def alone(self) -> None:
        """Wait until the server has noticed that its front-end is gone."""
        await until(lambda: self.server.session is None)

    @property
    def notifications(self) -> dict[str, int]:
        """How many config notifications were sent, and how many called off."""
        counts = self.server.status()["config-notifications"]
        assert isinstance(counts, dict)
        return counts


@asynccontextmanager
async def backend_at(
    path: Path, features: BalloonFeature = DEFAULT_FEATURES
) -> AsyncIterator[Backend]:
    """Serve a balloon at `path` while the context lasts."""
    listener = Listener()
    device = BalloonDevice(listener, balloon_features=features)
    server = VhostUserServer(device, path=path)
    listener.transport = server
    await server.start()
    try:
        yield Backend(path, device, server, listener)
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is true, which the code under test does not announce."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)

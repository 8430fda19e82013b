"""`ballast serve` with systemd as its keeper; a fake plays systemd."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.daemon.paths import VmPaths
from support.daemons import COMMAND, PATIENCE_SECONDS, POLL_SECONDS, ballast, keeper_status
from support.service_manager import ServiceManager

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio]


class Service:
    """A service of `systemd`, with one VM."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = ServiceManager(root / "notify")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, *options: str) -> int:
        """Start it, wait until it is ready, and return its process."""
        self.manager.states.clear()
        environment = {"BALLAST_RUNTIME_DIR": str(self.root)}
        self._process = self.manager.start([*COMMAND, "serve", "web", *options], **environment)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "READY=1" not in self.manager.states:
                assert self._process.poll() is None
                await asyncio.sleep(POLL_SECONDS)
                self.manager.read()
        return self._process.pid

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(PATIENCE_SECONDS)
        self.manager.read()
        return status

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.manager.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()


async def test_a_service_that_is_started_again_has_the_same_sockets(service: Service) -> None:
    paths = VmPaths("web", service.root)
    first = await service.start()
    status = await keeper_status(service.root)
    assert (status["mode"], status["worker-pid"], status["restarts"]) == ("systemd", first, 0)
    names = {name.rpartition("@")[0] for name in service.manager.names}
    assert names >= {"web/listener", "web/qmp-listener", "web/agent-listener", "web/lock"}
    assert "cannot be replaced" in await ballast(service.root, "upgrade", "web", status=1)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL

    # Whoever connects while nobody serves is served by the next.
    with socket.socket(socket.AF_UNIX) as qemu, socket.socket(socket.AF_UNIX) as agent:
        qemu.connect(str(paths.vhost_user))
        agent.connect(str(paths.agent))
        second = await service.start()
        status = await keeper_status(service.root)
        assert (status["worker-pid"], status["restarts"]) == (second, 1)
        assert status["last-reason"] == "systemd started the service again"
        agent.settimeout(PATIENCE_SECONDS)
        assert agent.recv(100)
        # A clean end is no other: whether it is for good, systemd knows.
        assert service.end(signal.SIGTERM) == 0
        names = {name.rpartition("@")[0] for name in service.manager.names}
        assert {"web/connection", "web/agent"} <= names
        qemu.setblocking(False)
        with pytest.raises(BlockingIOError):
            qemu.recv(1)
        await service.start()
        assert (await keeper_status(service.root))["restarts"] == 2


async def test_the_store_can_be_asked_for_and_left_alone(service: Service) -> None:
    await service.start("--keeper", "systemd")
    service.end(signal.SIGTERM)
    complaint = await ballast(service.root, "serve", "web", "--keeper", "systemd", status=1)
    assert "systemd cannot be reached" in complaint
    assert "FileDescriptorStoreMax" in complaint

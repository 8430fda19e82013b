"""`ballast serve` at a real broker: what operators see, and what a crash of it looks like."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast_images.broker import find_broker
from support.ballast_process import ballast_process
from support.driver import PAGE_SIZE
from support.machine import FREE, RAM_BYTES, machine_at
from support.mosquitto import Mosquitto, until

HOST = "ballast/node1"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(find_broker(), tmp_path / "broker")
    await broker.start()
    yield broker
    await broker.kill()


def configuration(tmp_path: Path, url: str) -> str:
    path = tmp_path / "vms.toml"
    path.write_text(
        f"""
        [mqtt]
        url = "{url}"
        host = "node1"
        will-delay = 0
        reconnect-delay = 0.05
        state-interval = 0.05
        [mqtt.home-assistant]
        [vm.web]
        """
    )
    return str(path)


async def test_a_fleet_sees_what_happens_to_a_vm(broker: Mosquitto, tmp_path: Path) -> None:
    arguments = ("serve", "--config", configuration(tmp_path, broker.url))
    async with (
        broker.subscriber(f"{HOST}/#", "homeassistant/#", "me/#") as inbox,
        ballast_process(tmp_path, *arguments) as daemon,
    ):
        await inbox.message(f"{HOST}/availability", containing="online")
        await inbox.message(f"{HOST}/web/availability", containing="offline")
        await inbox.message("homeassistant/device/ballast_node1_web/config")
        async with machine_at(tmp_path / "web" / "vhost-user.sock") as machine:
            await machine.start()
            await machine.config()
            await inbox.message(f"{HOST}/web/availability", containing="online")
            await inbox.message(
                "homeassistant/device/ballast_node1_web/config", containing='"target"'
            )
            size = RAM_BYTES - PAGE_SIZE
            await broker.publish(f"{HOST}/web/target/set", str(size), response_topic="me/r")
            await inbox.payload(f"{HOST}/web/state", containing=f'"target-bytes":{size}')
            await machine.inflate(FREE[0])
            await machine.set_actual(1)
            assert (await inbox.payload("me/r"))["result"] == "reached"
            await inbox.message(f"{HOST}/web/event", containing="BALLOON_CHANGE")
            await inbox.message(f"{HOST}/web/event", containing="BALLAST_RESIZE_DONE")
            shown = await _status(tmp_path)
            assert shown["connected"] is True
            assert shown["commands"] == 1
        await inbox.message(f"{HOST}/web/availability", containing="offline")
        daemon.terminate()
        await inbox.message(f"{HOST}/availability", containing="offline")
        assert await daemon.wait() == 0


async def _status(root: Path) -> dict[str, object]:
    async with ballast_process(root, "status", "web", "--json") as process:
        output, _ = await process.communicate()
    shown = json.loads(output)["mqtt"]
    assert isinstance(shown, dict)
    return shown


async def test_a_daemon_that_is_killed_is_reported_by_the_broker(
    broker: Mosquitto, tmp_path: Path
) -> None:
    arguments = ("serve", "--config", configuration(tmp_path, broker.url))
    async with broker.subscriber(f"{HOST}/availability", f"{HOST}/web/state") as inbox:
        async with ballast_process(tmp_path, *arguments) as daemon:
            await inbox.message(f"{HOST}/availability", containing="online")
            daemon.kill()
            await inbox.message(f"{HOST}/availability", containing="offline")
        # The target that was sent meanwhile waits for its successor.
        await broker.publish(f"{HOST}/web/target/set", "1G")
        async with ballast_process(tmp_path, *arguments):
            await inbox.message(f"{HOST}/web/state", containing=str(1 << 30))


async def test_a_daemon_without_its_broker(tmp_path: Path) -> None:
    async with ballast_process(tmp_path, "serve", "web", "--mqtt", "mqtt://127.0.0.1:1") as daemon:
        await until(lambda: (tmp_path / "web" / "qmp.sock").exists())
        shown: dict[str, object] = {}
        while not shown.get("last-error"):
            shown = await _status(tmp_path)
        assert shown["connected"] is False
        assert "refused" in str(shown["last-error"])
        daemon.terminate()
        assert await daemon.wait() == 0

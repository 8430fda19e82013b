"""`ballast serve` at a real broker: what operators see, and what crashes of it look like."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.mqtt.config import default_host
from ballast_images.broker import find_broker
from support.daemons import ballast, ballast_json, daemon, eventually, keeper_status, status_with
from support.driver import PAGE_SIZE
from support.machine import FREE, RAM_BYTES, machine_at
from support.mosquitto import Mosquitto

pytestmark = [pytest.mark.timeout(300)]

HOST = "ballast/node1"
SET = f"{HOST}/web/target/set"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(find_broker(), tmp_path / "broker")
    await broker.start()
    yield broker
    await broker.kill()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir()
    return root


def configuration(root: Path, url: str, *, will_delay: int = 0) -> str:
    path = root / "vms.toml"
    path.write_text(
        f"""
        [mqtt]
        url = "{url}"
        host = "node1"
        will-delay = {will_delay}
        reconnect-delay = 0.05
        state-interval = 0.05
        [mqtt.home-assistant]
        [vm.web]
        """
    )
    return str(path)


async def test_a_fleet_sees_what_happens_to_a_vm(broker: Mosquitto, root: Path) -> None:
    arguments = ("serve", "--config", configuration(root, broker.url))
    async with (
        broker.subscriber(f"{HOST}/#", "homeassistant/#", "me/#") as inbox,
        daemon(root, *arguments) as served,
    ):
        await inbox.message(f"{HOST}/availability", containing="online")
        await inbox.message(f"{HOST}/web/availability", containing="offline")
        await inbox.message("homeassistant/device/ballast_node1_web/config")
        async with machine_at(root / "web" / "vhost-user.sock") as machine:
            await machine.start()
            await machine.config()
            await inbox.message(f"{HOST}/web/availability", containing="online")
            await inbox.message(
                "homeassistant/device/ballast_node1_web/config", containing='"target"'
            )
            size = RAM_BYTES - PAGE_SIZE
            await broker.publish(SET, str(size), response_topic="me/r")
            await inbox.payload(f"{HOST}/web/state", containing=f'"target-bytes":{size}')
            await machine.inflate(FREE[0])
            await machine.set_actual(1)
            assert (await inbox.payload("me/r"))["result"] == "reached"
            await inbox.message(f"{HOST}/web/event", containing="BALLOON_CHANGE")
            await inbox.message(f"{HOST}/web/event", containing="BALLAST_RESIZE_DONE")
            shown = (await ballast_json(root, "status", "web"))["mqtt"]
            assert (shown["connected"], shown["commands"]) == (True, 1)
        await inbox.message(f"{HOST}/web/availability", containing="offline")
        served.signal(signal.SIGTERM)
        await inbox.message(f"{HOST}/availability", containing="offline")
        assert await served.ended() == 0


async def test_a_daemon_that_is_killed_is_reported_by_the_broker(
    broker: Mosquitto, root: Path
) -> None:
    arguments = ("serve", "--no-keeper", "--config", configuration(root, broker.url))
    async with broker.subscriber(f"{HOST}/availability", f"{HOST}/web/state") as inbox:
        async with daemon(root, *arguments) as served:
            await inbox.message(f"{HOST}/availability", containing="online")
            served.signal(signal.SIGKILL)
            await inbox.message(f"{HOST}/availability", containing="offline")
        # The target that was sent meanwhile waits for its successor.
        await broker.publish(SET, "1G")
        async with daemon(root, *arguments):
            await inbox.message(f"{HOST}/web/state", containing=str(1 << 30))


async def test_a_worker_that_is_killed_keeps_its_promises(broker: Mosquitto, root: Path) -> None:
    config = configuration(root, broker.url, will_delay=300)
    async with (
        broker.subscriber(f"{HOST}/availability", "me/#") as inbox,
        daemon(root, "serve", "--keeper", "parent", "--config", config),
    ):
        first = await keeper_status(root)
        await inbox.message(f"{HOST}/availability", containing="online")
        await broker.publish(SET, "1G", response_topic="me/r", correlation="a")
        shown = await _mqtt_with(root, commands=1)
        assert shown["connected"] is True
        os.kill(first["worker-pid"], signal.SIGKILL)
        await status_with(root, restarts=1)
        await _mqtt_with(root, connected=True)
        await ballast(root, "set", "web", "--cancel")
        message = await inbox.message("me/r", containing="cancelled")
        assert message["properties"]["correlation-data"] == "a"
        # The successor was back before anybody was told that it is gone.
        assert not [each for each in inbox.messages if each.get("payload") == "offline"]


async def _mqtt_with(root: Path, **expected: object) -> dict[str, object]:
    while True:
        shown = (await ballast_json(root, "status", "web"))["mqtt"]
        assert isinstance(shown, dict)
        if expected.items() <= shown.items():
            return shown


async def test_a_daemon_without_its_broker(root: Path) -> None:
    async with daemon(root, "serve", "web", "--mqtt", "mqtt://127.0.0.1:1") as served:
        await served.logged("Connection refused; trying again")
        await eventually((root / "web" / "qmp.sock").exists, "QMP")
        shown = (await ballast_json(root, "status", "web"))["mqtt"]
        assert shown["connected"] is False
        assert "refused" in shown["last-error"]
        served.signal(signal.SIGTERM)
        assert await served.ended() == 0


async def test_what_can_never_work_stops_the_start(root: Path) -> None:
    path = root / "vms.toml"
    path.write_text('[mqtt]\nurl = "mqtts://broker"\nca = "/nonexistent"\n[vm.web]\n')
    async with daemon(root, "serve", "--config", str(path)) as served:
        assert await served.ended() == 1
        assert "cannot read /nonexistent" in served.log


def quick_start() -> list[list[str]]:
    """Return the commands of the page's first block, word for word."""
    text = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text()
    block = text.split("## Quick start")[1].split("```")[1]
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


async def test_the_quick_start_works_as_it_is_written(broker: Mosquitto, root: Path) -> None:
    serve, *commands = quick_start()
    assert serve[:3] == ["ballast", "serve", "web"]
    arguments = [word.replace("mqtt://localhost", broker.url) for word in serve[1:]]
    outputs = {}
    async with daemon(root, *arguments):
        await keeper_status(root)
        async with machine_at(root / "web" / "vhost-user.sock") as machine:
            await machine.start()
            await machine.config()
            for name, *words in commands:
                words = [word.replace("HOST", default_host()) for word in words]
                # What would go on for ever ends with the retained messages.
                words += ["-C", "3"] if name == "mosquitto_sub" else []
                outputs[name] = await broker.run(name, *words)
    assert "/web/state {" in outputs["mosquitto_sub"]
    # More than the machine has is all of it.
    assert json.loads(outputs["mosquitto_rr"])["result"] == "reached"

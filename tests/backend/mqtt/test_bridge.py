"""The bridge at a real mosquitto, seen through mosquitto's own clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballast.mqtt.bridge import Bridge, bridged
from ballast.mqtt.config import MqttConfig, make_config
from ballast.mqtt.desk import Desk
from ballast.mqtt.promises import Awaited, Promises
from ballast.mqtt.session import Session
from ballast_images.broker import Broker
from support.balloon_control import MIB, FakeBalloonControl
from support.fds import none_left_open
from support.mosquitto import Mosquitto, until
from support.relay import Relay, relay_to

HOST = "ballast/node1"
SET = f"{HOST}/vm1/target/set"


@pytest.fixture
async def broker(programs: Broker, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(programs, tmp_path)
    await broker.start()
    yield broker
    await broker.kill()


@pytest.fixture
async def relay(broker: Mosquitto) -> AsyncIterator[Relay]:
    async with relay_to(broker.port) as relay:
        yield relay


def vm(name: str = "vm1", **fields: Any) -> FakeBalloonControl:
    return FakeBalloonControl(name=name, extra_status={"state": "running", "problem": ""}, **fields)


def configuration(url: str, **options: object) -> MqttConfig:
    return make_config(
        {
            "url": url,
            "host": "node1",
            "reconnect-delay": 0.05,
            "reconnect-delay-max": 0.2,
            "state-interval": 0.02,
            "stats-interval": 0,
            "will-delay": 0,
            **options,
        }
    )


@asynccontextmanager
async def bridge_to(url: str, *vms: FakeBalloonControl, **options: object) -> AsyncIterator[Bridge]:
    config = configuration(url, **options)
    async with bridged(Bridge(config, vms or [vm()], version="1.2.3")) as bridge:
        yield bridge


async def until_connected(bridge: Bridge, *, is_connected: bool = True) -> None:
    await until(lambda: bridge.is_connected is is_connected)


async def test_states_and_availabilities_are_retained(broker: Mosquitto) -> None:
    machine = vm()
    with none_left_open():
        async with bridge_to(broker.url, machine) as bridge:
            await until_connected(bridge)
            async with broker.subscriber(f"{HOST}/#") as inbox:
                assert (await inbox.message(f"{HOST}/availability"))["payload"] == "online"
                assert (await inbox.message(f"{HOST}/vm1/availability"))["payload"] == "online"
                state = await inbox.payload(f"{HOST}/vm1/state")
                assert state["actual-bytes"] == 2048 * MIB
                machine.set_target(1024 * MIB)
                state = await inbox.payload(f"{HOST}/vm1/state", containing=str(1024 * MIB))
                assert (state["target-bytes"], state["state"]) == (1024 * MIB, "running")
    async with broker.subscriber(f"{HOST}/availability") as inbox:
        gone = await inbox.message(f"{HOST}/availability")
        assert (gone["payload"], gone["retain"]) == ("offline", 1)


async def test_a_target_comes_in_and_its_result_goes_out(broker: Mosquitto) -> None:
    machine = vm()
    async with bridge_to(broker.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "1G", response_topic="me/results", correlation="42")
        message = await inbox.message("me/results")
        assert message["properties"]["correlation-data"] == "42"
        assert json.loads(message["payload"])["target-bytes"] == 1024 * MIB
        assert machine.target_bytes == 1024 * MIB
        await broker.publish(SET, '{"value": "512M"}', response_topic="me/results")
        assert (await inbox.payload("me/results"))["target-bytes"] == 512 * MIB


async def test_a_request_and_its_response(broker: Mosquitto) -> None:
    async with bridge_to(broker.url) as bridge:
        await until_connected(bridge)
        assert (await broker.request(SET, "1G"))["target-bytes"] == 1024 * MIB
        assert "is not a size" in (await broker.request(SET, "1Q"))["error"]["desc"]


async def test_without_a_response_topic_the_result_has_its_place(broker: Mosquitto) -> None:
    async with bridge_to(broker.url) as bridge, broker.subscriber(f"{HOST}/+/target/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "much")
        refused = await inbox.payload(f"{HOST}/vm1/target/result")
        assert refused["result"] == "refused"
        assert "'much' is not a size" in refused["error"]["desc"]
        await broker.publish(f"{HOST}/nobody/target/set", "1G")
        refused = await inbox.payload(f"{HOST}/nobody/target/result")
        assert "no VM named nobody" in refused["error"]["desc"]
        assert "vm1" in refused["error"]["hint"]


async def test_a_command_that_lay_at_the_broker_is_ignored(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    machine = vm()
    await broker.publish(SET, "1G", retain=True)
    async with bridge_to(broker.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        await broker.publish(f"{HOST}/x/target/set", "1G", response_topic="me/x")
        await inbox.message("me/x")
        assert machine.target_bytes is None
        assert bridge.status()["ignored"] == 1
    assert "ignoring the retained command" in caplog.text


async def test_a_command_sent_while_we_are_away_is_carried_out(broker: Mosquitto) -> None:
    machine = vm()
    async with bridge_to(broker.url, machine) as bridge:
        await until_connected(bridge)
    async with broker.subscriber("me/#") as inbox:
        await broker.publish(SET, "1G", response_topic="me/results", correlation="a")
        async with bridge_to(broker.url, machine):
            assert (await inbox.payload("me/results"))["target-bytes"] == 1024 * MIB
    assert machine.target_bytes == 1024 * MIB


async def test_the_same_correlation_again_is_answered_but_not_carried_out(
    broker: Mosquitto,
) -> None:
    machine = vm()
    async with bridge_to(broker.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "1G", response_topic="me/results", correlation="a")
        first = await inbox.payload("me/results")
        machine.set_target(512 * MIB)
        await broker.publish(SET, "1G", response_topic="me/results", correlation="a")
        assert await inbox.payload("me/results") == first
        assert machine.target_bytes == 512 * MIB
        assert bridge.status()["repeated"] == 1


async def test_a_broker_that_is_killed_and_comes_back(broker: Mosquitto) -> None:
    machine = vm()
    async with bridge_to(broker.url, machine) as bridge:
        await until_connected(bridge)
        async with broker.subscriber(f"{HOST}/#", session="watcher") as inbox:
            await inbox.message(f"{HOST}/vm1/state")
            await broker.remembers("watcher")
            await broker.kill()
            await until_connected(bridge, is_connected=False)
            machine.set_target(1024 * MIB)
            bridge.event("vm1", b'{"event": "BALLOON_CHANGE", "data": {"actual": 1}}\r\n')
            await broker.start()
            await inbox.payload(f"{HOST}/vm1/state", containing=str(1024 * MIB))
            event = await inbox.payload(f"{HOST}/vm1/event")
            assert event["event"] == "BALLOON_CHANGE"
            await broker.publish(SET, "1536M")
            result = await inbox.payload(f"{HOST}/vm1/target/result")
            assert result["target-bytes"] == 1536 * MIB
        status = bridge.status()
        assert (status["connected"], status["last-error"]) == (True, "")


async def test_a_broker_that_has_forgotten_everything_is_told_again(broker: Mosquitto) -> None:
    async with bridge_to(broker.url) as bridge:
        await until_connected(bridge)
        await broker.kill()
        await until_connected(bridge, is_connected=False)
        broker.forget_everything()
        await broker.start()
        async with broker.subscriber(f"{HOST}/#") as inbox:
            await inbox.message(f"{HOST}/availability", containing="online")
            await inbox.message(f"{HOST}/vm1/state")


async def test_results_wait_for_the_broker(broker: Mosquitto, relay: Relay) -> None:
    machine = vm(follows=False)
    async with bridge_to(relay.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "1G", response_topic="me/results", correlation="a")
        await until(lambda: bool(bridge.status()["commands"]))
        await relay.cut()
        await until_connected(bridge, is_connected=False)
        machine.actual_bytes = 1024 * MIB
        machine.governor.look_soon()
        await until(lambda: bool(bridge.status()["queued"]))
        await relay.open()
        message = await inbox.message("me/results")
        assert message["properties"]["correlation-data"] == "a"
        assert json.loads(message["payload"])["result"] == "reached"


async def test_resizes_end_in_many_ways(broker: Mosquitto) -> None:
    machine = vm(follows=False)
    command = {"value": "1G", "stall-timeout": 0.1, "on-failure": "rollback"}
    async with bridge_to(broker.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        machine.set_target(1536 * MIB)
        await broker.publish(SET, json.dumps(command), response_topic="me/stalled")
        stalled = await inbox.payload("me/stalled")
        assert (stalled["result"], stalled["rolled-back"]) == ("stalled", True)
        assert machine.target_bytes == 1536 * MIB
        await broker.publish(SET, "1G", response_topic="me/first")
        await broker.publish(SET, '{"value": "2G"}', response_topic="me/second")
        assert (await inbox.payload("me/first"))["result"] == "superseded"
        assert (await inbox.payload("me/second"))["result"] == "reached"
        machine.governor.hold("maintenance")
        held = await broker.request(SET, "1G")
        assert held["result"] == "refused"
        assert "maintenance" in held["error"]["desc"]


def go_on(bridge: Bridge, kept: dict[str, Promises]) -> None:
    """Have a bridge keep its promises where its successor finds them."""

    def keep(promises: Promises) -> None:
        kept["vm1"] = promises

    bridge.go_on("vm1", kept.get("vm1"), keep)


async def crash(running: asyncio.Task[None]) -> None:
    """End a bridge without a word, as the end of its process would."""
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_promises_outlive_the_process(broker: Mosquitto, relay: Relay) -> None:
    kept: dict[str, Promises] = {}
    machine = vm(follows=False)
    config = configuration(relay.url)
    async with broker.subscriber("me/#") as inbox:
        bridge = Bridge(config, [machine], version="1")
        go_on(bridge, kept)
        running = asyncio.create_task(bridge.run())
        await until_connected(bridge)
        await broker.publish(SET, "1536M", response_topic="me/early", correlation="a")
        await broker.publish(SET, "1G", response_topic="me/late", correlation="b")
        await until(lambda: machine.governor.current_resize == 2)
        assert json.loads((await inbox.message("me/early"))["payload"])["result"] == "superseded"
        await until(lambda: not kept["vm1"].owed)
        await relay.cut()
        await until_connected(bridge, is_connected=False)
        bridge.outbox.result("me/owed", b"{}", b"c", "vm1")
        (awaited,) = kept["vm1"].awaited
        assert (awaited.response_topic, awaited.resize) == ("me/late", 2)
        await crash(running)
        left = dict(kept)

        await relay.open()
        successor = Bridge(config, [machine], version="1")
        go_on(successor, left)
        async with bridged(successor):
            owed = await inbox.message("me/owed")
            assert owed["properties"]["correlation-data"] == "c"
            # Its sender has seen no result and asks again: the resize goes on all the same.
            await broker.publish(SET, "1G", response_topic="me/late", correlation="b")
            await until(lambda: successor.status()["repeated"] == 1)
            machine.actual_bytes = 1024 * MIB
            machine.governor.look_soon()
            late = await inbox.message("me/late")
            assert late["properties"]["correlation-data"] == "b"
            assert json.loads(late["payload"])["result"] == "reached"
            await until(lambda: left["vm1"] == Promises())


async def test_a_resize_that_ended_unseen_is_told_as_interrupted(broker: Mosquitto) -> None:
    kept = {"vm1": Promises(awaited=(Awaited(7, SET, "me/results", "61"),))}
    bridge = Bridge(configuration(broker.url), [vm()], version="1")
    async with broker.subscriber("me/#") as inbox:
        go_on(bridge, kept)
        async with bridged(bridge):
            message = await inbox.message("me/results")
            assert message["properties"]["correlation-data"] == "a"
            assert json.loads(message["payload"])["result"] == "interrupted"


async def test_the_end_of_the_daemon_is_a_result(broker: Mosquitto) -> None:
    machine = vm(follows=False)
    async with broker.subscriber("me/#") as inbox:
        async with bridge_to(broker.url, machine) as bridge:
            await until_connected(bridge)
            await broker.publish(SET, "1G", response_topic="me/results", correlation="a")
            await until(lambda: machine.governor.current_resize is not None)
        message = await inbox.message("me/results")
        assert json.loads(message["payload"])["result"] == "interrupted"


async def test_a_lost_connection_is_announced_by_the_broker(
    broker: Mosquitto, relay: Relay
) -> None:
    async with bridge_to(relay.url) as bridge, broker.subscriber(f"{HOST}/availability") as inbox:
        await until_connected(bridge)
        await inbox.message(f"{HOST}/availability", containing="online")
        await relay.cut()
        await inbox.message(f"{HOST}/availability", containing="offline")
        await relay.open()
        await inbox.message(f"{HOST}/availability", containing="online")


async def test_a_broker_that_never_answers(
    broker: Mosquitto, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballast.mqtt.session.ANSWER_SECONDS", 0.5)
    relay.swallows = True
    machine = vm()
    with none_left_open():
        async with bridge_to(relay.url, machine) as bridge:
            await until(lambda: relay.accepted >= 3)
            status = bridge.status()
            assert status["last-error"] == "the broker does not answer"
            assert status["connected"] is False
            machine.set_target(1024 * MIB)
            relay.swallows = False
            async with broker.subscriber(f"{HOST}/#") as inbox:
                await inbox.payload(f"{HOST}/vm1/state", containing=str(1024 * MIB))
        await relay.cut()


async def test_a_broker_that_falls_silent(
    broker: Mosquitto, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballast.mqtt.session.ANSWER_SECONDS", 0.5)
    machine = vm()
    async with bridge_to(relay.url, machine) as bridge:
        await until_connected(bridge)
        relay.swallows = True
        machine.set_target(1024 * MIB)
        await until_connected(bridge, is_connected=False)
        relay.swallows = False
        async with broker.subscriber(f"{HOST}/#") as inbox:
            await inbox.payload(f"{HOST}/vm1/state", containing=str(1024 * MIB))


async def test_nobody_listens() -> None:
    with none_left_open():
        async with bridge_to("mqtt://127.0.0.1:1") as bridge:
            await until(lambda: bool(bridge.status()["last-error"]))
            assert "Connection refused" in str(bridge.status()["last-error"])


async def test_a_command_whose_acknowledgement_was_lost_is_not_carried_out_twice(
    broker: Mosquitto, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = vm()
    acknowledge = Session.acknowledge
    monkeypatch.setattr(Session, "acknowledge", lambda session, request: None)
    async with bridge_to(relay.url, machine) as bridge, broker.subscriber("me/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "1G", response_topic="me/results")
        await inbox.message("me/results")
        machine.set_target(512 * MIB)
        monkeypatch.setattr(Session, "acknowledge", acknowledge)
        await relay.cut()
        await relay.open()
        await until(lambda: bridge.status()["repeated"] == 1)
        assert machine.target_bytes == 512 * MIB


async def test_a_command_that_was_not_taken_over_comes_again(
    broker: Mosquitto, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the process had ended after the message came, and before anything was done with it."""
    machine = vm()
    monkeypatch.setattr(Desk, "take", lambda *arguments: None)
    async with bridge_to(relay.url, machine) as bridge:
        await until_connected(bridge)
        await broker.publish(SET, "1G")
        await relay.cut()
    monkeypatch.undo()
    await relay.open()
    async with bridge_to(relay.url, machine):
        await until(lambda: machine.target_bytes == 1024 * MIB)


async def test_two_daemons_with_the_same_name(broker: Mosquitto) -> None:
    async with bridge_to(broker.url) as one, bridge_to(broker.url) as other:
        await until(
            lambda: (
                "same client id" in str(one.status()["last-error"])
                or "same client id" in str(other.status()["last-error"])
            )
        )


async def test_a_vm_that_is_gone_is_forgotten(broker: Mosquitto) -> None:
    options: dict[str, object] = {"home-assistant": {}}
    async with bridge_to(broker.url, vm(), vm("vm2"), **options) as bridge:
        await until_connected(bridge)
        async with broker.subscriber("homeassistant/#", f"{HOST}/#") as inbox:
            document = "homeassistant/device/ballast_node1_vm2/config"
            await inbox.message(document)
            await inbox.message(f"{HOST}/vm2/state")
    async with (
        broker.subscriber("homeassistant/#", f"{HOST}/#") as inbox,
        bridge_to(broker.url, vm(), **options) as bridge,
    ):
        await inbox.message(document, containing="components")
        for topic in (document, f"{HOST}/vm2/state", f"{HOST}/vm2/availability"):
            while (await inbox.message(topic)).get("payload"):
                pass
    async with broker.subscriber("homeassistant/#", f"{HOST}/#") as inbox:
        await inbox.message("homeassistant/device/ballast_node1_vm1/config")
        assert not [each for each in inbox.messages if "vm2" in each["topic"]]


async def test_statistics_come_at_the_operators_rate(broker: Mosquitto) -> None:
    machine = vm(fresh_values={4: 123 * MIB})
    async with (
        broker.subscriber(f"{HOST}/vm1/stats") as inbox,
        bridge_to(broker.url, machine, **{"stats-interval": 0.05}),
    ):
        for _ in range(3):
            stats = await inbox.payload(f"{HOST}/vm1/stats")
            assert stats["stats"] == {"stat-free-memory": 123 * MIB}
            assert (stats["fresh"], stats["last-update"]) == (True, 1000)
        machine.fresh_values = None
        stats = await inbox.payload(f"{HOST}/vm1/stats", containing='"fresh":false')
        assert "no statistics within" in stats["problem"]
        assert stats["age-seconds"] == 12.5


async def test_home_assistant_is_greeted_with_statistics(broker: Mosquitto) -> None:
    options: dict[str, object] = {"home-assistant": {}, "stats-interval": 3600}
    async with (
        broker.subscriber(f"{HOST}/vm1/stats") as inbox,
        bridge_to(broker.url, vm(fresh_values={4: 1}), **options),
    ):
        await inbox.message(f"{HOST}/vm1/stats")
        await broker.publish("homeassistant/status", "online")
        await inbox.message(f"{HOST}/vm1/stats")


async def test_a_vm_that_cannot_be_looked_at_does_not_hide_the_others(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeBalloonControl):
        def status(self) -> dict[str, object]:
            raise ZeroDivisionError

    async with (
        broker.subscriber(f"{HOST}/#") as inbox,
        bridge_to(broker.url, Broken(name="bad"), vm(), **{"stats-interval": 0.05}),
    ):
        await inbox.message(f"{HOST}/vm1/state")
        await inbox.message(f"{HOST}/vm1/stats")
        await inbox.message(f"{HOST}/vm1/stats")
    assert caplog.text.count("cannot tell how bad is") == 1


async def test_a_response_topic_where_nothing_can_be_published(broker: Mosquitto) -> None:
    async with bridge_to(broker.url) as bridge, broker.subscriber(f"{HOST}/#") as inbox:
        await until_connected(bridge)
        await broker.publish(SET, "1G", response_topic=SET)
        result = await inbox.payload(f"{HOST}/vm1/target/result")
        assert result["target-bytes"] == 1024 * MIB
        assert bridge.status()["commands"] == 1


CONNACK = b"\x20\x03\x00\x00\x00"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xf0\x00",
        CONNACK + b"\xff" * 50,
        CONNACK + b"\x90\x01\x01",
        CONNACK + b"\x32\x04\x00\xff\x00\x00",
        CONNACK + b"\x32\x08\x00\x01\xff\x00\x01\x01\x99\x00",
    ],
)
async def test_what_is_no_broker(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ballast.mqtt.session.ANSWER_SECONDS", 0.5)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                pass
        writer.close()

    with none_left_open():
        async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with bridge_to(f"mqtt://127.0.0.1:{port}") as bridge:
                await until(lambda: bridge.status()["failed-attempts"] == 3)
                assert bridge.status()["last-error"]

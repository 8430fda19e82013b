"""The bridge at a real mosquitto, seen through mosquitto's own clients."""

from __future__ import annotations

import json

import pytest

from support.balloon_control import MIB, FakeBalloonControl
from support.bridges import HOST, SET, bridge_to, until_connected, vm
from support.fds import none_left_open
from support.mosquitto import Mosquitto, until
from support.relay import Relay


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

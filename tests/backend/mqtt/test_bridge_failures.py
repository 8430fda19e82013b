"""The bridge when something ends, breaks or hangs: the broker, the connection, the process."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from ballast.mqtt.bridge import Bridge, bridged
from ballast.mqtt.desk import Desk
from ballast.mqtt.promises import Awaited, Promises
from ballast.mqtt.session import Session
from ballast_protocol.errors import OperatorError
from support.balloon_control import MIB
from support.bridges import HOST, SET, bridge_to, configuration, until_connected, vm
from support.fds import none_left_open
from support.mosquitto import PATIENCE_SECONDS, Mosquitto, until
from support.relay import Relay

CONNACK = b"\x20\x03\x00\x00\x00"


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


async def test_a_bridge_ends_though_its_cancellation_is_lost(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As happens when the connection ends in the same moment, by another daemon of that name."""
    conversations = 0

    async def converse(bridge: Bridge, session: Session) -> None:
        nonlocal conversations
        conversations += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise OperatorError("another client uses the same client id") from None

    monkeypatch.setattr(Bridge, "_converse", converse)
    async with asyncio.timeout(PATIENCE_SECONDS), bridge_to(broker.url):
        await until(lambda: conversations == 1)
    assert conversations == 1


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

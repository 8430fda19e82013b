from __future__ import annotations

import asyncio
import json

import pytest

from ballast.mqtt.command import Request
from ballast.mqtt.desk import Desk
from ballast.mqtt.outbox import Outbox, Outgoing
from ballast.mqtt.topics import Topics
from support.balloon_control import MIB, FakeBalloonControl
from support.mosquitto import until

TOPICS = Topics("ballast", "node1")
TOPIC = "ballast/node1/vm1/target/set"


class Scene:
    """A desk with one VM, and what came of what was put on it."""

    def __init__(self) -> None:
        self.vm = FakeBalloonControl(follows=False)
        self.outbox = Outbox(100)
        self.desk = Desk(TOPICS, {"vm1": self.vm}, self.outbox)
        self.acknowledged: list[bytes | None] = []

    def put(self, payload: bytes, correlation: bytes | None = None, **fields: object) -> None:
        request = Request(TOPIC, payload, 1, correlation=correlation, **fields)  # type: ignore[arg-type]
        self.desk.take("vm1", request, lambda: self.acknowledged.append(correlation))

    def result(self) -> Outgoing:
        item = self.outbox.take()
        assert item is not None
        return item


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_commands_are_acknowledged_at_once_and_in_order(scene: Scene) -> None:
    scene.put(b"1G", b"good")
    scene.put(b"no", b"bad")
    scene.put(b"512M", b"better")
    assert scene.acknowledged == [b"good", b"bad", b"better"]
    assert scene.vm.governor.current_resize == 2
    await scene.desk.close()


async def test_results_carry_their_correlation_and_their_vm(scene: Scene) -> None:
    scene.put(b"no", b"1")
    item = scene.result()
    assert (item.topic, item.correlation, item.owner) == (
        "ballast/node1/vm1/target/result",
        b"1",
        "vm1",
    )
    scene.put(b"no", b"1", response_topic="me")
    assert scene.result().topic == "me"


@pytest.mark.parametrize("topic", ["", "me/#", "+", TOPIC, "ballast/node1/other/target/set"])
async def test_a_response_topic_that_cannot_be_one(scene: Scene, topic: str) -> None:
    scene.put(b"no", response_topic=topic)
    assert scene.result().topic == "ballast/node1/vm1/target/result"


async def test_too_many_at_once_are_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ballast.mqtt.desk.MAX_RUNNING", 1)
    scene.put(b"1G")
    scene.put(b"512M")
    assert "too many commands" in json.loads(scene.result().payload)["error"]["desc"]
    assert scene.vm.target_bytes == 1024 * MIB
    await scene.desk.close()


async def test_a_repetition_meanwhile_is_answered_by_the_first(scene: Scene) -> None:
    scene.put(b"1G", b"1")
    scene.put(b"1G", b"1")
    assert scene.acknowledged == [b"1", b"1"]
    assert len(scene.outbox) == 0
    scene.vm.actual_bytes = 1024 * MIB
    scene.vm.governor.look_soon()
    await until(lambda: len(scene.outbox) == 1)
    assert json.loads(scene.result().payload)["result"] == "reached"
    assert scene.outbox.take() is None


async def test_the_end_is_told_to_all_who_wait(scene: Scene) -> None:
    scene.put(b"1G", b"1")
    assert [number for number, _ in scene.desk.awaited("vm1")] == [1]
    await scene.desk.close()
    item = scene.result()
    assert json.loads(item.payload)["result"] == "interrupted"
    assert item.correlation == b"1"
    await asyncio.sleep(0)
    assert scene.desk.awaited("vm1") == []

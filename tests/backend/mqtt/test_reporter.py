from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from ballast.mqtt.discovery import Discovery
from ballast.mqtt.outbox import Outbox
from ballast.mqtt.reporter import Reporter
from ballast.mqtt.topics import Topics
from support.balloon_control import MIB, FakeBalloonControl
from support.mosquitto import until

TOPICS = Topics("ballast", "node1")
STATE = "ballast/node1/vm1/state"


class Counted(FakeBalloonControl):
    """Counts how often it is looked at."""

    looks = 0

    def status(self) -> Mapping[str, object]:
        self.looks += 1
        return {"state": "running"}


def reporter(outbox: Outbox, *vms: FakeBalloonControl, discovery: bool = False) -> Reporter:
    found = Discovery(TOPICS, "homeassistant", MIB, "1") if discovery else None
    return Reporter(TOPICS, {vm.name: vm for vm in vms}, outbox, found, lambda: 5.0)


def waiting(outbox: Outbox) -> dict[str, bytes]:
    found = {}
    while (item := outbox.take()) is not None:
        found[item.topic] = item.payload
        outbox.done(item)
    return found


def test_a_vm_is_told_of_once() -> None:
    outbox, vm = Outbox(10), Counted()
    looking = reporter(outbox, vm)
    looking.look_at(vm)
    assert set(waiting(outbox)) == {STATE, "ballast/node1/vm1/availability"}
    looking.look_at(vm)
    assert waiting(outbox) == {}
    vm.actual_bytes = 1024 * MIB
    looking.look_at(vm)
    assert json.loads(waiting(outbox)[STATE])["actual-bytes"] == 1024 * MIB


def test_a_document_is_made_anew_when_the_machine_has_another_size() -> None:
    outbox, vm = Outbox(10), Counted(ram_bytes=None)
    looking = reporter(outbox, vm, discovery=True)
    topic = "homeassistant/device/ballast_node1_vm1/config"
    looking.look_at(vm)
    assert b'"target"' not in waiting(outbox)[topic]
    vm.ram_bytes = 2048 * MIB
    looking.look_at(vm)
    assert b'"target"' in waiting(outbox)[topic]
    looking.look_at(vm)
    assert topic not in waiting(outbox)


async def test_a_vm_that_stirs_is_looked_at_before_its_turn() -> None:
    one, other = Counted(name="one"), Counted(name="other")
    looking = reporter(Outbox(10), one, other)
    watching = asyncio.create_task(looking.watch(3600))
    await until(lambda: other.looks == 1)
    looking.stir("one")
    await until(lambda: one.looks == 2)
    assert other.looks == 1
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_guests_that_do_not_answer_do_not_keep_others_waiting() -> None:
    gate = asyncio.Event()

    class Mute(Counted):
        async def refresh_stats(self, timeout_seconds: float) -> None:
            await gate.wait()

    outbox = Outbox(10)
    outbox.connected()
    looking = reporter(outbox, Mute(name="mute"), Counted(name="quick", fresh_values={4: 1}))
    telling = asyncio.create_task(looking.tell_stats())
    await until(lambda: len(outbox) == 1)
    assert set(waiting(outbox)) == {"ballast/node1/quick/stats"}
    gate.set()
    await telling
    assert set(waiting(outbox)) == {"ballast/node1/mute/stats"}


async def test_a_bug_in_asking_is_told_in_the_statistics() -> None:
    class Broken(Counted):
        async def refresh_stats(self, timeout_seconds: float) -> None:
            raise ZeroDivisionError("oops")

    outbox, vm = Outbox(10), Broken()
    outbox.connected()
    await reporter(outbox, vm).tell_stats()
    stats = json.loads(waiting(outbox)["ballast/node1/vm1/stats"])
    assert (stats["fresh"], stats["problem"]) == (False, "internal error: oops")

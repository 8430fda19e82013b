from __future__ import annotations

from dataclasses import replace

from ballast.mqtt.command import Request
from ballast.mqtt.outbox import Outbox
from ballast.mqtt.promises import MAX_KEPT, Awaited, Owed, Promises, promises

REQUEST = Request("t", b"1G", 1, response_topic="me", correlation=b"\xff")


def results(count: int, topic: str = "me") -> Outbox:
    outbox = Outbox(1000)
    for number in range(count):
        outbox.result(topic, str(number).encode(), b"\1", "vm")
    return outbox


def test_what_is_kept() -> None:
    kept = promises([(3, REQUEST)], results(1).results("vm"))
    assert kept == Promises((Awaited(3, "t", "me", "ff"),), (Owed("me", "0", "01"),))
    assert kept.awaited[0].request() == Request("t", b"", response_topic="me", correlation=b"\xff")
    assert kept.awaited[0].request().key == REQUEST.key
    assert kept.owed[0].correlation_data == b"\1"


def test_only_the_newest_are_kept() -> None:
    kept = promises([(number, REQUEST) for number in range(99)], results(99).results("vm"))
    assert [each.resize for each in kept.awaited] == list(range(99 - MAX_KEPT, 99))
    assert [each.payload for each in kept.owed] == [str(n) for n in range(99 - MAX_KEPT, 99)]


def test_what_has_very_long_names_is_not_kept() -> None:
    long = replace(REQUEST, response_topic="me" * 1000)
    assert promises([(1, long)], results(1, "x" * 2000).results("vm")) == Promises()


def test_results_are_a_vms_own_in_their_order_until_the_broker_has_them() -> None:
    changed: list[str] = []
    outbox = Outbox(10, results_changed=changed.append)
    outbox.result("a", b"1", None, "vm")
    outbox.result("a", b"2", None, "other")
    outbox.result("a", b"3", None, "vm")
    outbox.event("a", b"4")
    first = outbox.take()
    assert first is not None
    assert [each.payload for each in outbox.results("vm")] == [b"1", b"3"]
    outbox.done(first)
    assert [each.payload for each in outbox.results("vm")] == [b"3"]
    assert changed == ["vm", "other", "vm", "vm"]

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ballast.policy.governor import HeldError, InhibitedError
from ballast.qmp.connection import MAX_LATE
from ballast.qmp.registry import EVENTS, Context, execute
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import Command, RefusedError, Version, check_value
from support.backend import until
from support.balloon_control import MIB, FakeBalloonControl
from support.qmp_peer import qmp_client, raw_peer, serving

LONG = 3600


async def run(vm: FakeBalloonControl, name: str, **arguments: Any) -> Any:
    request = {key.replace("_", "-"): value for key, value in arguments.items()}
    context = Context(vm, Version(1, 2, 3, "ballast"))
    return await execute(context, Command(name, request, {}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


async def test_without_wait_there_is_a_number_and_an_event() -> None:
    vm = FakeBalloonControl()
    assert await run(vm, "ballast-resize", value=512 * MIB) == {"id": 1}
    await vm.governor.wait(1)
    assert [name for name, _ in vm.events] == ["BALLAST_RESIZE_PROGRESS", "BALLAST_RESIZE_DONE"]
    assert (vm.events[-1][1]["id"], vm.events[-1][1]["result"]) == (1, "reached")


async def test_with_wait_the_answer_is_the_result() -> None:
    vm = FakeBalloonControl()
    answer = await run(vm, "ballast-resize", value=512 * MIB, wait=True)
    assert (answer["result"], answer["moved-bytes"]) == ("reached", 1536 * MIB)


async def test_what_does_not_get_there_is_an_answer() -> None:
    vm = FakeBalloonControl(follows=False)
    answer = await run(
        vm, "ballast-resize", value=MIB, timeout=0.01, on_failure="rollback", wait=True
    )
    assert (answer["result"], answer["rolled-back"]) == ("timed-out", True)
    assert vm.governor.target_bytes is None


async def test_events_carry_what_they_declare() -> None:
    vm = FakeBalloonControl(follows=False)
    await run(vm, "ballast-resize", value=MIB, timeout=LONG, rate=MIB)
    await run(vm, "ballast-resize-cancel")
    assert {name for name, _ in vm.events} == {"BALLAST_RESIZE_PROGRESS", "BALLAST_RESIZE_DONE"}
    for name, data in vm.events:
        check_value("data", EVENTS[name].data, json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    "arguments",
    [{"value": 0}, {"value": MIB, "timeout": 0}, {"value": MIB, "rate": -1}],
)
async def test_what_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(OperatorError):
        await run(FakeBalloonControl(), "ballast-resize", **arguments)


async def test_cancel_names_the_one_that_is_meant() -> None:
    vm = FakeBalloonControl(follows=False)
    with pytest.raises(OperatorError, match="no resize is in progress"):
        await run(vm, "ballast-resize-cancel")
    await run(vm, "ballast-resize", value=MIB, timeout=LONG)
    with pytest.raises(RefusedError, match="resize 7 is not in progress"):
        await run(vm, "ballast-resize-cancel", id=7)
    answer = await run(vm, "ballast-resize-cancel", id=1, rollback=True)
    assert (answer["result"], answer["rolled-back"]) == ("cancelled", True)
    assert vm.governor.current_resize is None


async def test_hold_and_inhibit() -> None:
    vm = FakeBalloonControl()
    await run(vm, "ballast-hold", enabled=True, reason="a test")
    with pytest.raises(HeldError, match="a test"):
        await run(vm, "balloon", value=MIB)
    await run(vm, "ballast-hold", enabled=False)
    await run(vm, "ballast-inhibit", enabled=True)
    assert vm.is_inhibited
    with pytest.raises(InhibitedError):
        await run(vm, "ballast-resize", value=MIB)
    await run(vm, "balloon", value=MIB)
    await run(vm, "ballast-inhibit", enabled=False)
    assert not vm.is_inhibited


# On a socket


def resize(number: object, value: int) -> bytes:
    arguments = {"value": value, "timeout": LONG, "stall-timeout": 0, "wait": True}
    request = {"execute": "ballast-resize", "arguments": arguments}
    if number is not None:
        request["id"] = number  # type: ignore[assignment]
    return json.dumps(request).encode()


async def test_a_client_goes_on_while_its_resize_does(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm), raw_peer(path) as peer:
        await peer.negotiate()
        peer.send(resize("long", 512 * MIB))
        for number in range(3):
            answer = await peer.ask(b'{"execute": "query-name", "id": %d}' % number)
            assert answer == {"return": {"name": "vm1"}, "id": number}
        vm.actual_bytes = 512 * MIB
        vm.governor.look_soon()
        answer = await peer.receive()
        assert (answer["id"], answer["return"]["result"]) == ("long", "reached")


async def test_without_an_id_replies_stay_in_order(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm), raw_peer(path) as peer, qmp_client(path) as other:
        await peer.negotiate()
        peer.send(resize(None, 512 * MIB) + b'{"execute": "query-name"}')
        while vm.governor.current_resize is None:
            await other.execute("query-name")
        vm.actual_bytes = 512 * MIB
        vm.governor.look_soon()
        assert (await peer.receive())["return"]["result"] == "reached"
        assert await peer.receive() == {"return": {"name": "vm1"}}


async def test_a_client_that_leaves_does_not_end_its_resize(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm) as server:
        async with raw_peer(path) as peer:
            await peer.negotiate()
            peer.send(resize(1, 512 * MIB))
            assert "return" in await peer.ask(b'{"execute": "query-name"}')
        async with qmp_client(path) as client:
            await client.execute("query-name")
            assert vm.governor.current_resize == 1
            await client.execute("ballast-resize-cancel")
        assert server.status()["malformed"] == 0


async def test_a_client_that_has_said_its_last_word_gets_its_result(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm), raw_peer(path) as peer:
        await peer.negotiate()
        peer.send(resize(1, 512 * MIB))
        peer.writer.write_eof()
        await until(lambda: vm.governor.current_resize is not None)
        vm.actual_bytes = 512 * MIB
        vm.governor.look_soon()
        assert (await peer.receive())["return"]["result"] == "reached"
        assert await peer.receive() is None


async def test_no_more_than_a_few_go_beside(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm), raw_peer(path) as peer, qmp_client(path) as other:
        await peer.negotiate()
        count = MAX_LATE * 3
        # Each supersedes the one before, which is answered so.
        peer.send(b"".join(resize(number, MIB * (number + 1)) for number in range(count)))
        found: list[tuple[int, str]] = []
        while len(found) < count - 1:
            answer = await peer.receive()
            if "return" in answer:
                found.append((answer["id"], answer["return"]["result"]))
        assert found == [(number, "superseded") for number in range(count - 1)]
        await other.execute("ballast-resize-cancel")

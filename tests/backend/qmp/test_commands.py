from __future__ import annotations

from typing import Any

import pytest

from ballast.daemon.kept import Kept
from ballast.policy.resize import ResizeRequest
from ballast.qmp.commands import COMMANDS, EVENTS, Context, execute
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import Command, ErrorClass, RefusedError, Version, check_value
from ballast_protocol.qmp.types import ANY, BOOLEAN, INTEGER, NUMBER, STRING, Choice, Type
from support.balloon_control import MIB, FakeBalloonControl, FakeBlocks, FakeStats

SOCKET_STATUS = {
    **{"clients": 1, "connections": 2, "dropped": 0},
    **{"rejected": 0, "malformed": 3, "commands": 4},
}


STATUS: dict[str, object] = {
    **{"state": "running", "problem": "", "settled": True, "features": ["STATS_VQ"]},
    **{"features-offered": [], "ledger": {}, "host": {}, "hinting": {}, "counters": {}},
    **{"transport": {}, "agent": {}, "blocks": {}, "mqtt": None, "qemu": None},
}


async def run(vm: FakeBalloonControl, name: str, **arguments: Any) -> Any:
    context = Context(vm, Version(1, 2, 3, "ballast 1.2.3"), lambda: SOCKET_STATUS)
    request = {key.replace("_", "-"): value for key, value in arguments.items()}
    return await execute(context, Command(name, request, {}))


async def refused(vm: FakeBalloonControl, name: str, **arguments: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await run(vm, name, **arguments)
    return caught.value


def arguments(name: str) -> list[tuple[str, Type, bool]]:
    return [(each.name, each.type, each.is_optional) for each in COMMANDS[name].arguments]


def test_arguments_are_declared_by_the_functions() -> None:
    assert arguments("balloon") == [("value", INTEGER, False)]
    assert arguments("query-balloon") == []
    assert arguments("ballast-stats") == [
        ("fresh", BOOLEAN, True),
        ("max-age", NUMBER, True),
        ("timeout", NUMBER, True),
    ]
    assert arguments("ballast-free-page-hint") == [("action", Choice(("start", "stop")), False)]
    assert arguments("qom-set") == [
        ("path", STRING, False),
        ("property", STRING, False),
        ("value", ANY, False),
    ]


async def test_every_command_is_listed() -> None:
    listed = {each["name"] for each in await run(FakeBalloonControl(), "query-commands")}
    assert listed == set(COMMANDS)
    assert listed >= {"qmp_capabilities", "balloon", "query-balloon", "qom-get", "ballast-status"}


def test_every_command_says_what_it_is() -> None:
    for name, declaration in COMMANDS.items():
        assert declaration.doc, name
        for argument in declaration.arguments:
            assert argument.doc, f"{name} {argument.name}"
    for event in EVENTS.values():
        assert event.doc


async def test_a_command_that_does_not_exist() -> None:
    error = await refused(FakeBalloonControl(), "nope")
    assert str(error) == "The command nope has not been found"
    assert error.error_class is ErrorClass.COMMAND_NOT_FOUND


async def test_none_of_ours_is_executed_out_of_band() -> None:
    context = Context(FakeBalloonControl(), Version(1, 2, 3, "x"))
    with pytest.raises(RefusedError, match="The command query-name does not support OOB"):
        await execute(context, Command("query-name", {}, {}, is_out_of_band=True))


CALLS: dict[str, dict[str, Any]] = {
    "balloon": {"value": MIB},
    "qom-get": {"path": "balloon0", "property": "guest-stats"},
    "qom-set": {"path": "balloon0", "property": "guest-stats-polling-interval", "value": 1},
    "qom-list": {"path": "balloon0"},
    "qom-list-get": {"paths": ["balloon0", "/machine"]},
    "ballast-free-page-hint": {"action": "start"},
    "ballast-resize": {"value": MIB},
    "ballast-hold": {"enabled": True},
    "ballast-inhibit": {"enabled": True},
}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"qmp_capabilities"}))
async def test_what_a_command_returns_is_what_it_declares(name: str) -> None:
    vm = FakeBalloonControl(
        report={},
        guest_stats=FakeStats({1: 2}, 5),
        ledger=[(1, 2)],
        extra_status=STATUS,
        blocks=FakeBlocks(),
        kept=Kept("parent", keeper_pid=1),
    )
    if name == "ballast-resize-cancel":
        vm.follows = False
        vm.governor.start_resize(ResizeRequest(MIB))
    answer = await run(vm, name, **CALLS.get(name, {}))
    vm.governor.close()
    check_value("return", COMMANDS[name].returns, answer)


async def test_who_is_there() -> None:
    vm = FakeBalloonControl(name="web")
    assert await run(vm, "query-name") == {"name": "web"}
    assert await run(vm, "query-version") == {
        "qemu": {"major": 1, "minor": 2, "micro": 3},
        "package": "ballast 1.2.3",
    }


async def test_balloon_sets_the_logical_size() -> None:
    vm = FakeBalloonControl()
    assert await run(vm, "balloon", value=512 * MIB) == {}
    assert vm.target_bytes == 512 * MIB
    assert await run(vm, "query-balloon") == {"actual": 512 * MIB}


async def test_balloon_takes_more_than_the_ram_for_all_of_it() -> None:
    vm = FakeBalloonControl(ram_bytes=1024 * MIB)
    await run(vm, "balloon", value=1 << 40)
    assert vm.target_bytes == 1024 * MIB


async def test_balloon_before_the_driver_is_remembered() -> None:
    vm = FakeBalloonControl(ram_bytes=None, actual_bytes=None)
    await run(vm, "balloon", value=512 * MIB)
    assert vm.target_bytes == 512 * MIB
    error = await refused(vm, "query-balloon")
    assert str(error) == "No balloon device has been activated"
    assert error.error_class is ErrorClass.DEVICE_NOT_ACTIVE


@pytest.mark.parametrize("value", [0, -1])
async def test_balloon_wants_a_size(value: int) -> None:
    vm = FakeBalloonControl()
    assert str(await refused(vm, "balloon", value=value)) == "Parameter 'value' expects a size"
    assert vm.target_bytes is None


async def test_arguments_are_checked_before_anything_happens() -> None:
    vm = FakeBalloonControl()
    error = await refused(vm, "balloon", value=512 * MIB, unit="MiB")
    assert str(error) == "Parameter 'unit' is unexpected"
    assert vm.target_bytes is None


async def test_what_the_vm_refuses_is_passed_on() -> None:
    with pytest.raises(OperatorError, match="below the floor"):
        await run(FakeBalloonControl(smallest_target_bytes=MIB), "balloon", value=1)


async def test_the_balloon_object() -> None:
    vm = FakeBalloonControl()
    path = "/machine/peripheral/balloon0"
    interval = {"path": path, "property": "guest-stats-polling-interval"}
    assert await run(vm, "qom-set", **interval, value=2) == {}
    assert await run(vm, "qom-get", **interval) == 2
    assert {"name": "guest-stats", "type": "guest statistics"} in await run(
        vm, "qom-list", path=path
    )


async def test_status_has_the_sizes_and_what_the_vm_adds() -> None:
    vm = FakeBalloonControl(actual_bytes=None, extra_status={"transport": "vhost-user"})
    assert await run(vm, "ballast-status") == {
        "name": "vm1",
        "ram-bytes": 2048 * MIB,
        "target-bytes": None,
        "actual-bytes": None,
        "transport": "vhost-user",
        "resizing": vm.governor.status(),
        "qmp": SOCKET_STATUS,
        "keeper": vm.kept.status(),
    }


async def test_stats_with_their_age() -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 100}, last_update=1000))
    answer = await run(vm, "ballast-stats")
    assert answer["stats"]["stat-free-memory"] == 100
    assert answer["stats"]["stat-swap-in"] == (1 << 64) - 1
    assert (answer["last-update"], answer["age-seconds"], answer["fresh"]) == (1000, 12.5, False)


async def test_stats_that_never_came_have_no_age() -> None:
    answer = await run(FakeBalloonControl(), "ballast-stats")
    assert (answer["last-update"], answer["age-seconds"]) == (0, None)


async def test_fresh_stats() -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 1}, 900), fresh_values={4: 2})
    answer = await run(vm, "ballast-stats", fresh=True, timeout=0.5)
    assert answer["stats"]["stat-free-memory"] == 2
    assert answer["fresh"] is True


async def test_fresh_stats_that_do_not_come() -> None:
    with pytest.raises(TimedOutError, match=r"within 0\.5 s"):
        await run(FakeBalloonControl(), "ballast-stats", fresh=True, timeout=0.5)


async def test_stats_that_are_young_enough_are_not_asked_for() -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 1}, 1000))
    answer = await run(vm, "ballast-stats", max_age=12.5)
    assert (answer["age-seconds"], answer["fresh"]) == (12.5, False)


@pytest.mark.parametrize("last_update", [1000, 0])
async def test_stats_that_are_too_old_are_never_passed_off_as_new(last_update: int) -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 1}, last_update))
    with pytest.raises(TimedOutError):
        await run(vm, "ballast-stats", max_age=12)
    vm.fresh_values = {4: 2}
    answer = await run(vm, "ballast-stats", max_age=12)
    assert (answer["stats"]["stat-free-memory"], answer["fresh"]) == (2, True)
    for age in (-1, float("nan")):
        assert "'max-age' expects" in str(await refused(vm, "ballast-stats", max_age=age))


@pytest.mark.parametrize("name", ["ballast-stats", "ballast-report"])
@pytest.mark.parametrize("seconds", [0, -1.0, 60.1])
async def test_patience_is_bounded(name: str, seconds: float) -> None:
    error = await refused(FakeBalloonControl(), name, timeout=seconds)
    assert str(error) == "Parameter 'timeout' expects seconds, more than 0 and at most 60"


async def test_the_ledger_as_runs() -> None:
    vm = FakeBalloonControl(ledger=[(16, 4), (32, 1)])
    runs = [[16, 4], [32, 1]]
    assert await run(vm, "ballast-ledger") == {"runs": runs, "block-runs": []}
    vm.blocks = FakeBlocks()
    assert await run(vm, "ballast-ledger") == {"runs": runs, "block-runs": [[512, 1024]]}


async def test_hinting() -> None:
    vm = FakeBalloonControl()
    await run(vm, "ballast-free-page-hint", action="start")
    await run(vm, "ballast-free-page-hint", action="stop")
    assert vm.hinting == ["start", "stop"]


async def test_report_of_the_agent() -> None:
    vm = FakeBalloonControl(report={"free-bytes": 5})
    assert await run(vm, "ballast-report", timeout=3) == {"free-bytes": 5, "asked-seconds": 3}
    with pytest.raises(OperatorError, match="no agent"):
        await run(FakeBalloonControl(), "ballast-report")

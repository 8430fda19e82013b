from __future__ import annotations

from typing import Any

import pytest

from ballast.qmp.commands import COMMANDS, EVENTS, Context, execute
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import Command, RefusedError, Version, check_value
from support.balloon_control import MIB, FakeBalloonControl, FakeBlocks


@pytest.fixture
def vm() -> FakeBalloonControl:
    return FakeBalloonControl(blocks=FakeBlocks())


async def run(vm: FakeBalloonControl, name: str, **arguments: Any) -> Any:
    context = Context(vm, Version(1, 2, 3, "ballast 1.2.3"))
    answer = await execute(context, Command(name, arguments, {}))
    check_value(name, COMMANDS[name].returns, answer)
    return answer


async def test_a_sweep_of_all_nodes_or_one(vm: FakeBalloonControl) -> None:
    assert (await run(vm, "ballast-sweep"))["freed-bytes"] == 5 * MIB
    await run(vm, "ballast-sweep", node=1, timeout=10.0)
    assert vm.blocks is not None
    assert vm.blocks.asked == [("sweep", None, 60.0), ("sweep", 1, 10.0)]


async def test_compaction(vm: FakeBalloonControl) -> None:
    assert (await run(vm, "ballast-compact", node=0))["blocks-after"] == 30
    assert vm.blocks is not None
    assert vm.blocks.asked == [("compact", 0, 60.0)]


@pytest.mark.parametrize("name", ["ballast-sweep", "ballast-compact"])
async def test_patience_has_its_bounds(vm: FakeBalloonControl, name: str) -> None:
    with pytest.raises(RefusedError, match="timeout"):
        await run(vm, name, timeout=61)


async def test_shares_of_nodes(vm: FakeBalloonControl) -> None:
    (row,) = await run(vm, "ballast-nodes")
    assert (row["node"], row["held-bytes"]) == (0, 64 * MIB)
    rows = await run(vm, "ballast-nodes", node=1, share=32 * MIB)
    assert rows[1]["share-bytes"] == 32 * MIB
    with pytest.raises(RefusedError, match="go together"):
        await run(vm, "ballast-nodes", node=1)


@pytest.mark.parametrize("name", ["ballast-sweep", "ballast-compact", "ballast-nodes"])
async def test_a_balloon_without_an_agent_says_so(name: str) -> None:
    with pytest.raises(OperatorError, match="no balloon that an agent could help"):
        await run(FakeBalloonControl(), name)


def test_pressure_is_told_no_more_than_once_a_second() -> None:
    assert EVENTS["BALLAST_GUEST_PRESSURE"].period_seconds == 1.0

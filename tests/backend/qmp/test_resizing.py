from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from ballast.qmp import resizing as module
from ballast.qmp.resizing import Follow, check_reached
from ballast_protocol.errors import OperatorError, TimedOutError
from support.backend import until
from support.balloon_control import MIB, FakeBalloonControl
from support.qmp_peer import serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


LONG = {"value": 512 * MIB, "timeout": 3600, "stall-timeout": 0}


async def test_progress_and_result_come_by_events(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    heard: list[Mapping[str, object]] = []

    def hear(progress: Mapping[str, object]) -> None:
        heard.append(progress)
        vm.actual_bytes = 512 * MIB

    async with serving(path, vm) as server:
        vm.on_event = server.emit
        # So long that nothing is asked but at the start.
        result = await Follow(path, hear, poll_seconds=3600).resize(LONG)
    assert result["result"] == "reached"
    assert heard[0]["wanted-bytes"] == 512 * MIB
    check_reached(result)


async def test_without_events_it_asks(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)

    def hear(progress: Mapping[str, object]) -> None:
        vm.actual_bytes = 512 * MIB

    async with serving(path, vm):
        result = await Follow(path, hear, poll_seconds=0.05).resize(LONG)
    assert result["result"] == "reached"


async def test_a_daemon_that_is_replaced_in_the_middle(path: Path) -> None:
    vm = FakeBalloonControl(follows=False)
    async with serving(path, vm):
        follow = Follow(path, poll_seconds=0.05)
        following = asyncio.create_task(follow.resize(LONG))
        await until(lambda: follow.number is not None)
    async with serving(path, vm):
        vm.actual_bytes = 512 * MIB
        assert (await following)["result"] == "reached"


async def test_a_daemon_that_has_forgotten(path: Path) -> None:
    async with serving(path, FakeBalloonControl(follows=False)):
        follow = Follow(path, poll_seconds=0.05)
        following = asyncio.create_task(follow.resize(LONG))
        await until(lambda: follow.number is not None)
    async with serving(path, FakeBalloonControl()):
        with pytest.raises(OperatorError, match="knows nothing any more of resize 1"):
            await following


async def test_a_daemon_that_does_not_come_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    async with serving(path, FakeBalloonControl(follows=False)):
        follow = Follow(path, poll_seconds=0.05)
        following = asyncio.create_task(follow.resize({**LONG, "timeout": 0.5}))
        await until(lambda: follow.number is not None)
    with pytest.raises(TimedOutError, match="no result"):
        await following


async def test_nobody_there_and_refusals(path: Path) -> None:
    with pytest.raises(OperatorError, match="no VM named"):
        await Follow(path).resize(LONG)
    async with serving(path):
        with pytest.raises(OperatorError, match="cannot have 0 bytes"):
            await Follow(path).resize({"value": 0})


def test_what_results_mean() -> None:
    check_reached({"result": "reached"})
    with pytest.raises(TimedOutError, match="so it is"):
        check_reached({"result": "timed-out", "explanation": "so it is"})
    with pytest.raises(OperatorError, match="so it is") as caught:
        check_reached({"result": "stalled", "explanation": "so it is"})
    assert not isinstance(caught.value, TimedOutError)

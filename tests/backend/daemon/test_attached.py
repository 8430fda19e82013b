"""A VM with QEMU's own balloon, and a QEMU that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.attached import AttachedVm
from ballast.daemon.config import VmConfig, make_vm_config
from ballast.daemon.paths import VmPaths
from ballast_protocol.errors import OperatorError, TimedOutError
from support.backend import until
from support.fake_qemu import FakeBalloon, FakeQemu, fake_qemu
from support.qmp_peer import qmp_client

MIB = 1 << 20


@asynccontextmanager
async def attached(tmp_path: Path, **options: Any) -> AsyncIterator[AttachedVm]:
    config = VmConfig(name="vm", attach=tmp_path / "qemu.sock", **options)
    vm = AttachedVm(config, paths=VmPaths("vm", tmp_path))
    await vm.start()
    try:
        yield vm
    finally:
        await vm.close()


@asynccontextmanager
async def qemu_with(tmp_path: Path, balloon: FakeBalloon) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qemu.sock") as qemu:
        balloon.serve(qemu)
        yield qemu


async def test_a_target_waits_for_qemu_and_holds_for_the_next(tmp_path: Path) -> None:
    async with attached(tmp_path, target=512 * MIB, stats_polling_interval=5) as vm:
        for _ in range(2):
            balloon = FakeBalloon()
            async with qemu_with(tmp_path, balloon):
                await until(lambda: vm.status()["state"] == "running")
                assert balloon.actual_bytes == 512 * MIB
                assert balloon.interval == 5
            await until(lambda: vm.status()["state"] == "waiting-for-qemu")


async def test_without_a_target_qemu_is_left_alone(tmp_path: Path) -> None:
    async with attached(tmp_path) as vm, qemu_with(tmp_path, FakeBalloon(last_update=5)) as qemu:
        await until(lambda: vm.status()["state"] == "running")
        assert not {each["execute"] for each in qemu.asked} & {"balloon", "qom-set"}


@pytest.mark.parametrize("place", ["/machine/peripheral", "/machine/peripheral-anon"])
async def test_the_balloon_is_found(tmp_path: Path, place: str) -> None:
    balloon = FakeBalloon(place=place, last_update=5, interval=3)
    async with attached(tmp_path) as vm, qemu_with(tmp_path, balloon):
        await until(lambda: vm.guest_stats.last_update == 5)
        assert vm.guest_stats.values == {4: 77}
        assert vm.stats_polling_interval == 3
        assert (vm.stats_age_seconds or 0) > 1e9


async def test_a_driver_shows_itself_by_statistics_or_by_moving(tmp_path: Path) -> None:
    for balloon in (FakeBalloon(last_update=1), FakeBalloon(actual_bytes=1 << 29)):
        async with attached(tmp_path) as vm, qemu_with(tmp_path, balloon):
            await until(lambda vm=vm: vm.observe().is_running)  # type: ignore[misc]
    async with attached(tmp_path) as vm, qemu_with(tmp_path, FakeBalloon()):
        await until(lambda: vm.actual_bytes is not None)
        assert vm.status()["state"] == "waiting-for-driver"
        assert vm.observe().actual_bytes is None


async def test_fresh_statistics_leave_the_interval_as_it_was(tmp_path: Path) -> None:
    balloon = FakeBalloon(interval=60)
    async with attached(tmp_path) as vm, qemu_with(tmp_path, balloon):
        await until(lambda: vm.stats_polling_interval == 60)
        await vm.refresh_stats(20)
        assert vm.guest_stats.values == {4: 77}
        assert balloon.intervals == [1, 60]
        balloon.answers_polls = False
        with pytest.raises(TimedOutError):
            await vm.refresh_stats(0.01)
        assert balloon.interval == 60


async def test_a_change_of_the_balloon_is_heard_of_by_all(tmp_path: Path) -> None:
    async with attached(tmp_path) as vm, qemu_with(tmp_path, FakeBalloon()) as qemu:
        told: list[bytes] = []
        vm.join_fleet(told.append, dict)
        await until(lambda: vm.actual_bytes is not None)
        async with qmp_client(vm.paths.qmp) as client:
            with client.listener("BALLOON_CHANGE") as changes:
                change = {"event": "BALLOON_CHANGE", "data": {"actual": 5 * MIB}}
                qemu.emit({**change, "timestamp": {"seconds": 1, "microseconds": 2}})
                assert (await changes.get())["data"] == {"actual": 5 * MIB}
        assert vm.actual_bytes == 5 * MIB
        assert len(told) == 1


async def test_the_target_goes_through_us_and_all_else_to_qemu(tmp_path: Path) -> None:
    balloon = FakeBalloon(last_update=1)
    async with attached(tmp_path) as vm, qemu_with(tmp_path, balloon) as qemu:
        await until(lambda: vm.actual_bytes is not None)
        async with qmp_client(vm.paths.qmp) as client:
            await client.execute("balloon", {"value": 256 * MIB})
            assert await client.execute("query-balloon") == {"actual": 256 * MIB}
            assert vm.target_bytes == 256 * MIB
            interval = {"path": "/machine/peripheral/b", "property": "guest-stats-polling-interval"}
            await client.execute("qom-set", {**interval, "value": 9})
            assert balloon.interval == 9
            vm.governor.hold("a test")
            with pytest.raises(Exception, match="on hold"):
                await client.execute("balloon", {"value": 128 * MIB})
        assert [each["execute"] for each in qemu.asked].count("balloon") == 1


async def test_what_qemu_refuses_shows_in_the_status(tmp_path: Path) -> None:
    balloon = FakeBalloon(last_update=1)
    async with attached(tmp_path) as vm, qemu_with(tmp_path, balloon) as qemu:
        await until(lambda: vm.status()["state"] == "running")
        qemu.answers["balloon"] = {"class": "KVMMissingCap", "desc": "no MMU notifiers"}
        vm.set_target(MIB)
        await until(lambda: vm.status()["problem"] == "no MMU notifiers")


def test_options_of_a_balloon_of_ours_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"takes no deflate-on-oom, socket-path"):
        make_vm_config(
            "web", {"attach": "/q", "deflate_on_oom": True, "socket_path": "/s", "target": 1}
        )
    assert make_vm_config("web", {"attach": "/q", "inhibit": False}).attach == Path("/q")

"""VMs whose balloon is QEMU's own: the same commands, statistics and events."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from ballast.daemon.attached import AttachedVm
from ballast.daemon.config import VmConfig
from ballast.daemon.fleet import in_fleets
from ballast.daemon.paths import VmPaths
from ballast.mqtt.config import make_config
from ballast.qmp.results import STATUS
from ballast_images.broker import find_broker
from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_images.vm import Vm
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import check_value
from support.fds import none_left_open
from support.mosquitto import Mosquitto
from support.qmp_peer import qmp_client
from support.qtest import machine_arguments, running_qtest
from support.system import GIB, MIB, QUICK_ALLOCATION, eventually

pytestmark = [pytest.mark.asyncio]

BALLOON = ("-device", "virtio-balloon-pci,id=balloon7,free-page-reporting=on")
RAM_BYTES = 256 * MIB


@asynccontextmanager
async def attached(monitor: Path, **options: Any) -> AsyncIterator[AttachedVm]:
    with none_left_open(), tempfile.TemporaryDirectory(prefix="bal-") as directory:
        config = VmConfig(name="vm", attach=monitor, **options)
        vm = AttachedVm(config, paths=VmPaths("vm", Path(directory)))
        await vm.start()
        try:
            yield vm
        finally:
            await vm.close()


@asynccontextmanager
async def machine_with(qemu: Path, monitor: Path, *device: str) -> AsyncIterator[int]:
    """A QEMU without a guest; yields its process."""
    arguments = (*machine_arguments(RAM_BYTES), *device)
    monitors = ("-qmp", f"unix:{monitor},server=on,wait=off")
    async with running_qtest(qemu, *arguments, *monitors) as qtest:
        yield qtest.pid


@asynccontextmanager
async def at_broker(vm: AttachedVm, directory: Path) -> AsyncIterator[Mosquitto]:
    """Report a VM to a broker of the test's own."""
    mqtt = Mosquitto(find_broker(), directory)
    await mqtt.start()
    try:
        config = make_config({"url": mqtt.url, "host": "h", "state-interval": 0.05})
        async with (
            mqtt.subscriber("ballast/h/availability") as inbox,
            in_fleets([vm], [VmConfig(name="vm", mqtt=config)]),
        ):
            # It says so once it listens to commands; what is sent before nobody hears.
            await inbox.message("ballast/h/availability", containing="online")
            yield mqtt
    finally:
        await mqtt.kill()


def state(vm: AttachedVm) -> object:
    return vm.status()["state"]


@pytest.mark.qemu
async def test_qemu_comes_goes_and_comes_again(qemu: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "qemu.sock"
    async with attached(monitor, target=192 * MIB, stats_polling_interval=7) as vm:
        assert state(vm) == "waiting-for-qemu"
        assert vm.target_bytes == 192 * MIB
        for _ in range(2):
            async with machine_with(qemu, monitor, *BALLOON) as pid:
                # Nobody is there to move, so what shows that QEMU was asked is QEMU's interval.
                await eventually(lambda: vm.stats_polling_interval == 7, "QEMU is asked")
                assert state(vm) == "waiting-for-driver"
                assert vm.governor.status()["guest"] == "waiting-for-driver"
                assert (vm.ram_bytes, vm.actual_bytes) == (RAM_BYTES, RAM_BYTES)
                async with qmp_client(vm.paths.qmp) as client:
                    status: Any = await client.execute("ballast-status")
                    check_value("ballast-status", STATUS, status)
                    assert status["transport"]["path"] == "/machine/peripheral/balloon7"
                    assert status["problem"] == ""
                    assert status["host"]["rss-bytes"] > 0
                    assert status["qemu"]["pid"] == pid
                    value: Any = await client.execute(
                        "qom-get", {"path": "balloon7", "property": "guest-stats"}
                    )
                    assert value["last-update"] == 0
            await eventually(lambda: state(vm) == "waiting-for-qemu", "QEMU is gone")
            assert vm.actual_bytes is None
        assert vm.target_bytes == 192 * MIB


@pytest.mark.qemu
async def test_a_vm_without_a_balloon_says_so(qemu: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "qemu.sock"
    async with attached(monitor) as vm, machine_with(qemu, monitor):
        await eventually(lambda: "has no balloon" in str(vm.status()["problem"]), "that is seen")
        with pytest.raises(OperatorError, match="has no balloon"):
            await vm.refresh_stats(1)
        async with qmp_client(vm.paths.qmp) as client:
            for command, arguments in (("balloon", {"value": MIB}), ("query-balloon", {})):
                with pytest.raises(ExecuteError) as caught:
                    await client.execute(command, arguments)
                assert caught.value.error_class == "DeviceNotActive"


@pytest.mark.qemu
async def test_what_only_a_balloon_of_ours_has_is_refused(qemu: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "qemu.sock"
    async with attached(monitor) as vm, machine_with(qemu, monitor, *BALLOON):
        await eventually(lambda: vm.actual_bytes is not None, "QEMU answers")
        async with qmp_client(vm.paths.qmp) as client:
            for command, arguments in (
                ("ballast-ledger", {}),
                ("ballast-report", {}),
                ("ballast-free-page-hint", {"action": "start"}),
                ("ballast-free-page-hint", {"action": "stop"}),
                ("ballast-inhibit", {"enabled": True}),
            ):
                with pytest.raises(ExecuteError, match="balloon is QEMU's own"):
                    await client.execute(command, dict(arguments))
        with pytest.raises(TimedOutError, match=r"no statistics within 0\.3 s"):
            await vm.refresh_stats(0.3)
        assert vm.stats_polling_interval == 0


@pytest.mark.qemu
async def test_a_fleet_sees_qemu_come_and_go(qemu: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "qemu.sock"
    async with (
        attached(monitor) as vm,
        at_broker(vm, tmp_path) as mqtt,
        mqtt.subscriber("ballast/h/vm/#") as inbox,
    ):
        await inbox.message("ballast/h/vm/availability", containing="offline")
        async with machine_with(qemu, monitor, *BALLOON):
            await inbox.message("ballast/h/vm/availability", containing="online")
            state = await inbox.payload("ballast/h/vm/state", containing=f":{RAM_BYTES},")
            assert (state["ledger-bytes"], state["agent"]) == (None, None)
            command = '{"value": "192M", "timeout": 600}'
            await mqtt.publish("ballast/h/vm/target/set", command)
            await inbox.payload("ballast/h/vm/state", containing=f":{192 * MIB},")
        await inbox.message("ballast/h/vm/availability", containing="offline")
        result = await inbox.payload("ballast/h/vm/target/result")
        assert (result["result"], result["wanted-bytes"]) == ("disconnected", 192 * MIB)


@pytest.mark.guest
@pytest.mark.timeout(600)
async def test_a_guest_on_qemus_own_balloon(qemu: Path, image: GuestImage, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vm-") as directory:
        machine = Machine(
            qemu=qemu,
            image=image,
            directory=Path(directory),
            memory_bytes=GIB,
            kernel_arguments=(QUICK_ALLOCATION,),
            arguments=BALLOON,
        )
        async with attached(machine.qmp_socket) as vm, Vm(machine) as guest:
            await guest.wait_ready()
            await eventually(lambda: state(vm) == "running", "QEMU tells of the guest")
            async with qmp_client(vm.paths.qmp) as client:
                with client.listener("BALLOON_CHANGE") as changes:
                    answer: Any = await client.execute(
                        "ballast-resize", {"value": 768 * MIB, "wait": True}
                    )
                    assert (answer["result"], answer["final-bytes"]) == ("reached", 768 * MIB)
                    first: Any = (await changes.get())["data"]
                    assert 768 * MIB <= first["actual"] < GIB
                assert await client.execute("query-balloon") == {"actual": 768 * MIB}
                assert vm.status()["settled"]

                stats: Any = await client.execute("ballast-stats", {"fresh": True, "timeout": 30})
                assert 0 < stats["stats"]["stat-free-memory"] < 768 * MIB
                assert stats["age-seconds"] < 30
                assert vm.stats_polling_interval == 0

                async with at_broker(vm, tmp_path) as mqtt:
                    answer = await mqtt.request("ballast/h/vm/target/set", "896M")
                    assert (answer["result"], answer["final-bytes"]) == ("reached", 896 * MIB)

                await client.execute("stop")
                await eventually(lambda: state(vm) == "paused", "a pause shows")
                await client.execute("cont")
                await client.execute("balloon", {"value": GIB})
                await eventually(lambda: vm.actual_bytes == GIB, "the guest takes it back")
            assert guest.status is None

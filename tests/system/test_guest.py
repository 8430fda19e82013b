"""One stock Linux guest of 2 GiB, from its boot to its death: the tests run in this order on it.

They run over each transport. The balloon sits behind a root port, so that it can be unplugged; over
vfio-user it is plugged in while the guest runs. Each test leaves the guest whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from ballast.qmp.guest_stats import named_stats
from ballast_images.guest import GuestImage
from ballast_images.kernel_log import complaints
from ballast_protocol.virtio.balloon import STATISTIC_UNSET
from support.system import (
    GIB,
    MIB,
    ROOT_PORT,
    Guest,
    Targets,
    allocated_bytes,
    balloon_device,
    bench,
    booted,
    changing_targets,
    counter,
    deleting_balloon,
    device_properties,
    eventually,
    log_dirty_pages,
    rss_bytes,
    served,
    settle,
    settled,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

RAM_BYTES = 2 * GIB


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["vhost-user", "vfio-user"])
async def guest(
    request: pytest.FixtureRequest, qemu: Path, image: GuestImage
) -> AsyncIterator[Guest]:
    is_plugged_later = request.param == "vfio-user"
    async with served(transport=request.param) as balloon:
        device = () if is_plugged_later else balloon_device(balloon, bus="rp0")
        arguments = (*ROOT_PORT, *device)
        async with booted(
            qemu, image, balloon, memory_bytes=RAM_BYTES, arguments=arguments
        ) as guest:
            if is_plugged_later:
                await plug(guest)
            yield guest


only_vhost_user = pytest.mark.parametrize("guest", ["vhost-user"], indirect=True)


async def plug(guest: Guest) -> None:
    """Put the balloon into its root port, and wait until the guest's driver has it."""
    await guest.vm.qmp.execute("device_add", device_properties(guest.balloon, bus="rp0"))
    await eventually(lambda: guest.balloon.device.is_running, "the driver starts")


def storm(guest: Guest) -> AbstractAsyncContextManager[Targets]:
    return changing_targets(guest.balloon, RAM_BYTES, 64 * MIB, pause_seconds=0.0005)


async def assert_no_warnings(guest: Guest) -> None:
    assert complaints(await guest.warnings()) == []


async def test_the_stock_driver_binds_without_a_warning(guest: Guest) -> None:
    assert (await guest.run("nproc")).strip() == "2"
    # Stable kernels since 6.12.11x decline indirect descriptors (28) for their balloon.
    assert await guest.feature_bits() - {28} == {0, 1, 5, 29, 32}
    assert guest.balloon.status()["features"] == ["MUST_TELL_HOST", "STATS_VQ", "PAGE_REPORTING"]
    await assert_no_warnings(guest)
    await guest.assert_well()


async def test_free_memory_goes_back_by_itself(guest: Guest) -> None:
    await guest.memtool(f"dirty --bytes {500 * MIB}")
    before, reported = allocated_bytes(guest.balloon), counter(guest.balloon, "reported_bytes")
    assert before > 500 * MIB
    await eventually(
        lambda: before - allocated_bytes(guest.balloon) > 256 * MIB, "256 MiB are reported"
    )
    assert counter(guest.balloon, "reported_bytes") - reported > 256 * MIB
    assert guest.balloon.ledger_runs() == []


async def test_a_gibibyte_goes_back_and_comes_again_whole(guest: Guest) -> None:
    balloon = guest.balloon
    await guest.memtool(f"dirty --bytes {1600 * MIB}")
    held, resident = allocated_bytes(balloon), rss_bytes(balloon)
    await settle(balloon, GIB)
    assert held - allocated_bytes(balloon) >= 0.95 * GIB
    assert resident - rss_bytes(balloon) >= 0.95 * GIB
    assert balloon.ledger_bytes == GIB
    assert (await guest.memtool("meminfo"))["MemTotal"] < 1.1 * GIB
    await guest.assert_well()

    await settle(balloon, RAM_BYTES)
    assert balloon.ledger_runs() == []
    found = await guest.memtool(f"fill --bytes {1300 * MIB}")
    assert found["verified_bytes"] == 1300 * MIB
    assert found["wrong_pages"] == 0
    await guest.assert_well()


async def test_statistics_are_the_guest_s_own_and_fresh(guest: Guest) -> None:
    started = int(time.time())
    await guest.balloon.refresh_stats(10)
    meminfo = await guest.memtool("meminfo")
    stats = named_stats(guest.balloon.guest_stats)
    assert guest.balloon.guest_stats.last_update >= started
    assert stats["stat-total-memory"] == meminfo["MemTotal"]
    assert abs(stats["stat-free-memory"] - meminfo["MemFree"]) < 64 * MIB
    assert abs(stats["stat-available-memory"] - meminfo["MemAvailable"]) < 64 * MIB
    assert STATISTIC_UNSET not in (stats["stat-major-faults"], stats["stat-disk-caches"])


async def test_the_agent_reports(guest: Guest) -> None:
    report = await guest.balloon.request_agent_report(10)
    meminfo = await guest.memtool("meminfo")
    text = json.dumps(report)
    assert str(meminfo["MemTotal"]) in text, text
    assert (await guest.run("uname -r")).strip() in text, text


async def test_qmp_shell_moves_the_balloon(guest: Guest) -> None:
    wanted = RAM_BYTES - 128 * MIB
    shell = Path(sys.executable).parent / "qmp-shell"

    async def say(*lines: str) -> list[dict[str, object]]:
        process = await asyncio.create_subprocess_exec(
            *(str(shell), str(guest.balloon.paths.qmp)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate("".join(f"{line}\n" for line in lines).encode())
        assert process.returncode == 0
        return [
            json.loads(text) for text in re.findall(r'\{"(?:return|error)".*', printed.decode())
        ]

    assert await say(f"balloon value={wanted}") == [{"return": {}}]
    await settled(guest.balloon)
    stats = "qom-get path=/machine/peripheral/balloon0 property=guest-stats"
    size, answer = await say("query-balloon", stats)
    assert size == {"return": {"actual": wanted}}
    assert "stat-free-memory" in json.dumps(answer)
    assert await say(f"balloon value={RAM_BYTES}") == [{"return": {}}]
    await settled(guest.balloon)
    await guest.assert_well()


async def test_targets_without_pause_while_stopped_and_continued(guest: Guest) -> None:
    async with storm(guest):
        for number in range(150):
            await guest.vm.qmp.execute("stop")
            await guest.vm.qmp.execute("cont")
            await asyncio.sleep(number % 5 * 0.01)
    await settled(guest.balloon)
    await guest.assert_well()


@only_vhost_user
async def test_a_target_set_during_a_pause_is_reached_after_it(guest: Guest) -> None:
    await guest.vm.qmp.execute("stop")
    await eventually(lambda: not guest.balloon.device.is_running, "the pause arrives")
    guest.balloon.set_target(RAM_BYTES - 300 * MIB)
    await guest.vm.qmp.execute("cont")
    await settled(guest.balloon)
    assert guest.balloon.ledger_bytes == 300 * MIB
    await guest.assert_well()


async def test_a_target_above_the_ram_means_all_of_it(guest: Guest) -> None:
    await settle(guest.balloon, 64 * GIB)
    assert guest.balloon.target_bytes == RAM_BYTES
    assert guest.balloon.ledger_runs() == []
    await guest.assert_well()


@only_vhost_user
async def test_targets_without_pause_while_dirty_pages_are_logged(guest: Guest) -> None:
    async with storm(guest):
        await log_dirty_pages(guest.vm.qmp)
    await settled(guest.balloon)
    await guest.assert_well()


async def test_targets_without_pause_while_the_driver_is_unbound_and_bound(guest: Guest) -> None:
    drivers = "/sys/bus/virtio/drivers/virtio_balloon"
    name = (await guest.driver()).rpartition("/")[2]
    async with storm(guest):
        for _ in range(5):
            await guest.run(f"echo {name} > {drivers}/unbind")
            assert not guest.balloon.device.is_running
            await guest.run(f"echo {name} > {drivers}/bind")
    await settled(guest.balloon)
    await guest.assert_well()
    await assert_no_warnings(guest)


@only_vhost_user
async def test_targets_without_pause_while_unplugged_and_plugged_in(guest: Guest) -> None:
    async with storm(guest):
        for _ in range(3):
            async with deleting_balloon(guest.vm.qmp):
                pass
            await plug(guest)
    await settled(guest.balloon)
    await guest.assert_well()
    await assert_no_warnings(guest)


async def test_targets_without_pause_through_a_machine_reset(guest: Guest) -> None:
    before = guest.vm.shell.ready
    async with storm(guest) as targets:
        await guest.vm.qmp.execute("system_reset")
        # The BIOS runs, the kernel boots, the driver starts: targets all the time.
        await guest.vm.shell.wait_ready(after=before)
    assert targets.count > 1000
    await settled(guest.balloon)
    await guest.assert_well()


async def test_a_rebooted_guest_gets_the_target_that_was_set_before(guest: Guest) -> None:
    await settle(guest.balloon, RAM_BYTES - 512 * MIB)
    await guest.vm.shell.reboot()
    await settled(guest.balloon)
    assert guest.balloon.ledger_bytes == 512 * MIB
    await guest.assert_well()
    await assert_no_warnings(guest)


async def test_a_guest_killed_in_mid_inflate_makes_room_for_the_next(
    guest: Guest, qemu: Path
) -> None:
    balloon = guest.balloon
    await settle(balloon, RAM_BYTES)
    balloon.set_target(512 * MIB)
    await eventually(lambda: balloon.ledger_bytes > 64 * MIB, "inflating is under way")
    os.kill(guest.vm.pid, signal.SIGKILL)
    assert await guest.vm.wait_ended() == -signal.SIGKILL
    await eventually(lambda: balloon.vmm_pid is None, "QEMU's end is seen")
    assert balloon.ledger_runs() == []
    async with bench(qemu, balloon, memory_bytes=512 * MIB + 64 * MIB) as machine:
        await machine.driver.start()
        async with machine.driver.obeying():
            await settled(balloon)
        assert balloon.ledger_bytes == 64 * MIB
        await machine.assert_exact()

"""The huge balloon in a real guest: agent and kernel share a target, whatever happens to either.

The tests run in this order, the second and third in one guest, whose kernel reports no free pages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ballast.daemon.vm import VirtualMachine
from ballast.soak.storm import KILL_AGENT
from ballast_images.guest import GuestImage
from support.system import GIB, MIB, Guest, allocated_bytes, booted, eventually, served

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

RAM_BYTES = GIB
DIRTY_BYTES = 640 * MIB
FREED_SHARE = 0.9
"""Of what the guest had touched: it has some of that back by the time we look."""

LIKE_THE_KERNEL_S = 1.10
"""How much of the guest's memory the host may hold after a sweep, against what it holds when the
guest's kernel reports its free pages by itself."""

SLACK_BYTES = 8 * MIB
"""What two boots of the same guest differ in, more or less: measured up to 5 MiB."""

LEFT_BYTES = RAM_BYTES // 32
"""Half of the reserve, which a sweep leaves as it is. Where that is a second sweep may take; or it
takes again what the first one took, if the guest has not used anything in between."""

SWEEPS = 2
"""The first one may begin while the process that has freed its memory is still about to end."""

QUIET_SECONDS = 4.0
"""The kernel reports a free page about two seconds after it became free (mm/page_reporting.c)."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel_resident_bytes(qemu: Path, image: GuestImage) -> int:
    """What the host holds of a guest whose kernel reports the free memory itself."""
    async with (
        served(free_page_reporting=True, transport="vfio-user") as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES) as guest,
    ):
        await guest.memtool(f"dirty --bytes {DIRTY_BYTES}")
        return await lowest_resident(balloon)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(qemu: Path, image: GuestImage) -> AsyncIterator[Guest]:
    async with (
        served(agent_blocks=True, free_page_reporting=False, transport="vfio-user") as balloon,
        booted(qemu, image, balloon, memory_bytes=RAM_BYTES) as guest,
    ):
        await agent_is_there(balloon)
        yield guest


def blocks(balloon: VirtualMachine) -> dict[str, Any]:
    status: Any = balloon.status()["blocks"]
    return dict(status)


def counters(balloon: VirtualMachine, name: str) -> int:
    return int(blocks(balloon)["counters"][name])


async def agent_is_there(balloon: VirtualMachine) -> None:
    await eventually(lambda: blocks(balloon)["obstacle"] is None, "the agent takes blocks")


async def has_size(balloon: VirtualMachine, target_bytes: int, held_bytes: int) -> None:
    """Wait until the guest has a size, so much of the rest being held by its agent."""
    await eventually(
        lambda: (
            balloon.actual_bytes == target_bytes
            and balloon.device.blocks.known_hold_bytes == held_bytes
        ),
        f"the guest has {target_bytes} bytes, and its agent holds {held_bytes}",
    )


async def lowest_resident(balloon: VirtualMachine) -> int:
    """Wait until the host holds no less for a while, and return how much."""
    lowest, lowest_at = allocated_bytes(balloon), time.monotonic()
    while time.monotonic() - lowest_at < QUIET_SECONDS:
        await asyncio.sleep(0.1)
        if (resident := allocated_bytes(balloon)) < lowest - MIB:
            lowest, lowest_at = resident, time.monotonic()
    return min(lowest, allocated_bytes(balloon))


async def verified(guest: Guest, size_bytes: int) -> None:
    result = await guest.memtool(f"fill --bytes {size_bytes}")
    assert result["wrong_pages"] == 0


async def test_a_sweep_gives_back_what_the_kernel_s_reporting_would(
    kernel_resident_bytes: int, guest: Guest
) -> None:
    balloon = guest.balloon
    assert "PAGE_REPORTING" not in str(balloon.status()["features"])
    await guest.memtool(f"dirty --bytes {DIRTY_BYTES}")
    by_sweep = allocated_bytes(balloon)
    for _ in range(SWEEPS):
        before = by_sweep
        done = await balloon.blocks.sweep(None, 60.0)
        by_sweep = allocated_bytes(balloon)
        print(f"host-resident: {by_sweep / MIB:.0f} MiB after a sweep: {done['reason']}")
        assert isinstance(done["freed-bytes"], int)
        assert done["freed-bytes"] > FREED_SHARE * (before - by_sweep) - SLACK_BYTES
        await asyncio.sleep(1.0)
    print(f"host-resident: {kernel_resident_bytes / MIB:.0f} MiB by the kernel's reporting")
    # The guest has all of it again.
    assert balloon.actual_bytes == RAM_BYTES
    assert balloon.device.blocks.sweep_bytes == 0
    most = LIKE_THE_KERNEL_S * kernel_resident_bytes + LEFT_BYTES + SLACK_BYTES
    assert by_sweep <= most
    await verified(guest, 128 * MIB)
    await guest.assert_well()


async def test_agent_and_kernel_share_a_target_whatever_happens(guest: Guest) -> None:
    balloon = guest.balloon
    await guest.memtool(f"dirty --bytes {DIRTY_BYTES}")
    before = allocated_bytes(balloon)
    balloon.set_target(RAM_BYTES // 2)
    await has_size(balloon, RAM_BYTES // 2, 512 * MIB)
    assert balloon.ledger_runs() == []
    assert allocated_bytes(balloon) < before - 0.5 * 512 * MIB
    found: Any = balloon.status()
    assert found["settled"]
    assert found["ledger"]["bytes"] == found["ledger"]["agent-bytes"] == 512 * MIB
    assert sum(count for _, count in balloon.blocks.runs()) * 4096 == 512 * MIB
    await eventually(
        lambda: [each["agent-held-bytes"] for each in balloon.blocks.nodes()] == [512 * MIB],
        "the agent says so too",
    )
    assert [each["held-bytes"] for each in balloon.blocks.nodes()] == [512 * MIB]

    # What is left to the guest is its own, to the last byte.
    await verified(guest, 128 * MIB)
    target = RAM_BYTES - 256 * MIB - 3 * 4096
    balloon.set_target(target)
    await has_size(balloon, target, 256 * MIB)
    assert len(await guest.ballooned()) > 0
    await guest.assert_well()

    await agent_is_killed(guest)
    await daemon_forgets(guest)
    await guest_restarts(guest)

    balloon.set_target(RAM_BYTES)
    await has_size(balloon, RAM_BYTES, 0)
    await verified(guest, 400 * MIB)
    await guest.assert_well()
    assert "Out of memory" not in await guest.run("dmesg")


async def agent_is_killed(guest: Guest) -> None:
    """Its blocks stay where they are, and the next agent finds them; nobody is asked for more."""
    balloon, target = guest.balloon, guest.balloon.target_bytes
    sessions, reports = counters(balloon, "sessions"), counters(balloon, "reports")
    await guest.run(KILL_AGENT)
    await eventually(lambda: counters(balloon, "sessions") > sessions, "another agent has come")
    await agent_is_there(balloon)
    assert balloon.actual_bytes == target
    await has_size(balloon, target or 0, 256 * MIB)
    # The books agreed: nothing was discarded a second time.
    assert counters(balloon, "reports") == reports
    assert len(await guest.ballooned()) > 0
    await guest.assert_well()


async def daemon_forgets(guest: Guest) -> None:
    """A daemon that knows nothing is told again, and discards again what it is told."""
    balloon, reports = guest.balloon, counters(guest.balloon, "reports")
    balloon.device.blocks.forget()
    await has_size(balloon, balloon.target_bytes or 0, 256 * MIB)
    assert counters(balloon, "reports") > reports
    await guest.assert_well()


async def guest_restarts(guest: Guest) -> None:
    """Another kernel has all of its memory, until it is asked for the target in its turn."""
    balloon, forgotten = guest.balloon, counters(guest.balloon, "forgotten-bytes")
    await guest.vm.shell.reboot()
    assert counters(balloon, "forgotten-bytes") >= forgotten + 256 * MIB
    await agent_is_there(balloon)
    await has_size(balloon, balloon.target_bytes or 0, 256 * MIB)
    await guest.assert_well()

"""What is particular to vfio-user: its variants, their messages, unplugging, and migration."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ballast.daemon.migration import refuse_migration
from ballast_images.guest import GuestImage
from support.system import (
    MIB,
    ROOT_PORT,
    Guest,
    balloon_device,
    booted,
    changing_targets,
    counter,
    deleting_balloon,
    device_properties,
    eventually,
    messages,
    served,
    settle,
    settled,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

RAM_BYTES = 512 * MIB
BALLOON_BYTES = 256 * MIB

MESSAGES_PER_BUFFER = {"msix-mapped": 1, "msix": 3, "intx": 5}
"""A notification; and where the page is not mapped, the read of `num_pages` and the write of
`actual`; and with INTx, the read of the ISR and the unmasking."""

SHARED_LINE = {"msix-mapped": 1.0, "msix": 1.0, "intx": 1.2}
"""Other devices are on the same interrupt line, and each time that one of them raises it the guest
asks ours too whether it was the one."""

OTHER_MESSAGES = 32
"""What comes beside them: config changes, statistics."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["msix-mapped", "msix", "intx"])
async def guest(
    request: pytest.FixtureRequest, qemu: Path, image: GuestImage
) -> AsyncIterator[Guest]:
    options = {"transport": "vfio-user", "variant": request.param}
    # Reports are messages as well, and come when they like.
    async with served(**options, free_page_reporting=False) as balloon:
        arguments = (*ROOT_PORT, *balloon_device(balloon, bus="rp0"))
        async with booted(
            qemu, image, balloon, memory_bytes=RAM_BYTES, cpus=1, arguments=arguments
        ) as guest:
            yield guest


only_intx = pytest.mark.parametrize("guest", ["intx"], indirect=True)


def variant_of(guest: Guest) -> str:
    status: Any = guest.balloon.status()["transport"]
    return str(status["variant"])


async def test_memory_that_firmware_maps_again_and_again_is_followed(guest: Guest) -> None:
    counts = messages(guest.balloon)
    assert counts["dma-map"] > 12
    assert counts["dma-unmap"] > 8
    assert guest.balloon.ram_bytes == RAM_BYTES
    assert "refused" not in counts
    await guest.assert_well()


async def test_how_many_messages_a_buffer_takes(guest: Guest) -> None:
    """Both ways, because deflating has the same steps."""
    balloon, limit = guest.balloon, MESSAGES_PER_BUFFER[variant_of(guest)]
    for target, name in (
        (RAM_BYTES - BALLOON_BYTES, "inflate_buffers"),
        (RAM_BYTES, "deflate_buffers"),
    ):
        before, buffers = messages(balloon), counter(balloon, name)
        await settle(balloon, target)
        served_buffers = counter(balloon, name) - buffers
        sent = sum(messages(balloon).values()) - sum(before.values())
        print(f"{variant_of(guest)}: {sent} messages for {served_buffers} {name}")
        assert served_buffers >= BALLOON_BYTES // MIB
        assert sent <= limit * served_buffers * SHARED_LINE[variant_of(guest)] + OTHER_MESSAGES
        # Not fewer either, or the table in the documentation is wrong.
        assert sent > (limit - 1) * served_buffers
    await guest.assert_well()


@only_intx
async def test_targets_without_pause_while_unplugged_and_plugged_in(guest: Guest) -> None:
    balloon = guest.balloon
    await settle(balloon, RAM_BYTES - 64 * MIB)
    async with changing_targets(balloon, RAM_BYTES, 64 * MIB, pause_seconds=0.0005):
        for _ in range(3):
            connection = balloon.vmm_pid
            async with deleting_balloon(guest.vm.qmp):
                pass
            await eventually(lambda: balloon.vmm_pid is None, "QEMU disconnects")
            assert balloon.ledger_runs() == []
            await guest.vm.qmp.execute("device_add", device_properties(balloon, bus="rp0"))
            await eventually(lambda: balloon.device.is_running, "the driver starts")
            assert balloon.vmm_pid == connection
    await settled(balloon)
    await guest.assert_well()


async def test_a_migration_that_would_lose_the_balloon_is_cancelled(guest: Guest) -> None:
    """QEMU 11.1 does not know that the device cannot be migrated, and would go through with it."""
    await settle(guest.balloon, RAM_BYTES - 64 * MIB)
    qmp = guest.vm.qmp
    guard = asyncio.create_task(refuse_migration(guest.vm.machine.qmp_socket, "vm"))
    try:
        await qmp.execute("migrate-set-parameters", {"max-bandwidth": 16 * MIB})
        capabilities: Any = None
        while {"capability": "events", "state": True} not in (capabilities or []):
            capabilities = await qmp.execute("query-migrate-capabilities")
        await qmp.execute("migrate", {"uri": "exec:cat >/dev/null"})
        answer: Any = {"status": "setup"}
        while answer["status"] in ("setup", "active", "cancelling"):
            answer = await qmp.execute("query-migrate")
        assert answer["status"] == "cancelled"
    finally:
        guard.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await guard
    await settle(guest.balloon, RAM_BYTES)
    await guest.assert_well()

"""A VM with a vfio-user balloon stays where it is, whatever is asked of a real QEMU."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ballast.daemon.migration import refuse_migration
from ballast_images.qemu import find_qemu
from support.qtest import MIB, Qtest, machine_arguments, running_qtest


@asynccontextmanager
async def guarded(directory: Path) -> AsyncIterator[tuple[Qtest, asyncio.Task[None]]]:
    """Run a QEMU that is watched, and wait until the watch has begun."""
    control = directory / "control"
    monitor = ("-qmp", f"unix:{control},server=on,wait=off")
    guard = asyncio.create_task(refuse_migration(control, "vm1"))
    await asyncio.sleep(0)  # it looks before QEMU listens
    qemu = find_qemu().command
    try:
        async with running_qtest(qemu, *machine_arguments(64 * MIB), *monitor) as qtest:
            await until_capability(qtest)
            yield qtest, guard
    finally:
        guard.cancel()
        with suppress(asyncio.CancelledError):
            await guard


async def until_capability(qtest: Qtest) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await qtest.qmp.execute("query-migrate-capabilities")
            assert isinstance(found, list)
            if {"capability": "pause-before-switchover", "state": True} in found:
                return
            await asyncio.sleep(0.01)


async def migration_ended(qtest: Qtest) -> object:
    async with asyncio.timeout(20):
        while True:
            found = await qtest.qmp.execute("query-migrate")
            assert isinstance(found, dict)
            if found.get("status") in ("cancelled", "completed", "failed"):
                return found["status"]
            await asyncio.sleep(0.01)


@pytest.mark.qemu
@pytest.mark.parametrize("target", ["exec:cat >/dev/null", "file:{}/state"])
async def test_every_migration_is_cancelled(
    tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded(tmp_path) as (qtest, guard):
        for _ in range(3):
            await qtest.qmp.execute("migrate", {"uri": target.format(tmp_path)})
            assert await migration_ended(qtest) == "cancelled"
        await qtest.assert_alive()
        assert not guard.done()
    said = [record for record in caplog.records if "a migration was cancelled" in record.message]
    assert len(said) >= 3
    assert {record.levelno for record in said} == {logging.ERROR}


@pytest.mark.qemu
async def test_the_watch_ends_with_qemu(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (qtest, guard):
        await qtest.qmp.execute("quit")
        async with asyncio.timeout(20):
            await guard

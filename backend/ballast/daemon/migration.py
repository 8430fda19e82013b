"""Keeps a VM from being migrated without its balloon.

QEMU 11.1 does not know that a vfio-user device cannot be migrated: it moves the VM, and the rings
and features of the balloon are lost. So whoever started QEMU watches for a migration and cancels
it. (Over vhost-user QEMU refuses by itself.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

log = logging.getLogger(__name__)

CONNECT_PAUSE_SECONDS = 0.05
_CAPABILITIES = ("events", "pause-before-switchover")
"""The second keeps a VM that is small enough from being gone before we can cancel."""

_STARTING = ("setup", "active", "pre-switchover", "device")


async def refuse_migration(monitor: Path, vm: str) -> None:
    """Watch QEMU through a monitor of its own, and cancel every migration; ends with QEMU.

    Args:
        monitor: The socket of a QMP monitor that nobody else uses.
        vm: The VM's name, for the log.
    """
    qmp = QMPClient(vm)
    # What it has to say about a QEMU that ends is said by whoever waits for QEMU.
    qmp.logger.disabled = True
    await _connect(qmp, monitor)
    try:
        with qmp.listener("MIGRATION") as events:
            capabilities = [{"capability": name, "state": True} for name in _CAPABILITIES]
            await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
            await _until_gone(qmp, _watch(qmp, events, vm))
    except (QMPError, EOFError, OSError):
        log.debug("%s: the monitor is gone", vm)
    finally:
        with contextlib.suppress(QMPError, EOFError, OSError):
            await qmp.disconnect()


async def _connect(qmp: QMPClient, monitor: Path) -> None:
    """Connect as soon as QEMU listens; whoever runs this cancels it if QEMU never does."""
    while True:
        try:
            await qmp.connect(str(monitor))
        except (QMPError, OSError):
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return


async def _until_gone(qmp: QMPClient, watch: Coroutine[None, None, None]) -> None:
    """Run `watch` while the monitor is connected: no listener is told of its end."""
    watching = asyncio.ensure_future(watch)
    gone = asyncio.ensure_future(qmp.runstate_changed())
    try:
        await asyncio.wait({watching, gone}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
    finally:
        for task in (watching, gone):
            task.cancel()


async def _watch(qmp: QMPClient, events: EventListener, vm: str) -> None:
    """Cancel each migration as it begins."""
    async for event in events:
        data = event["data"]
        if isinstance(data, dict) and data.get("status") in _STARTING:
            log.error(
                "%s: a migration was cancelled: QEMU cannot move a vfio-user balloon. "
                "Set the target to all of the memory and unplug it first, or use vhost-user",
                vm,
            )
            with contextlib.suppress(ExecuteError):
                await qmp.execute("migrate_cancel")

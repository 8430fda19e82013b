"""The daemon that is measured: a process of its own, as operators run it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError

START_SECONDS = 30.0
LOOK_SECONDS = 0.02


@contextlib.asynccontextmanager
async def daemon(vms: Sequence[VmPaths], socket: Path, *options: str) -> AsyncIterator[int]:
    """Run `ballast serve` for some VMs and return the id of the process that does the work.

    Free-page reporting is off: it would give memory back before the balloon does.

    Args:
        vms: Whose runtime directories lie in the same place.
        socket: The one that appears last.
        options: More for the command.

    Raises:
        OperatorError: It ended at once.
        TimeoutError: It does not listen.
    """
    command = [sys.executable, "-m", "ballast.cli.main", "serve", *(each.name for each in vms)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--no-free-page-reporting", *options),
        env={**os.environ, "BALLAST_RUNTIME_DIR": str(vms[0].directory.parent)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not _exist(socket, vms[-1].qmp):
                if process.returncode is not None:
                    raise OperatorError(f"`ballast serve` ended with {process.returncode}")
                await asyncio.sleep(LOOK_SECONDS)
        yield await _worker(vms[0]) or process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _exist(*sockets: Path) -> bool:
    return all(each.is_socket() for each in sockets)


async def _worker(vm: VmPaths) -> int | None:
    """Return the process that serves a VM, where a keeper has started it."""
    async with qmp.connect(vm.qmp) as client:
        status: Any = await client.query("ballast-status")
    pid = (status.get("keeper") or {}).get("worker-pid")
    return int(pid) if pid else None

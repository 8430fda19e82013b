"""Runs QEMU and a keeper beside it; the worker is elsewhere, and may come and go.

That is one container of two: what has to live as long as the VM is in this one, everything that
thinks in the other, and they share a directory of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ballast.daemon.keeping import default_socket, keeper_command
from ballast.daemon.launch import LaunchPlan, run_qemu
from ballast.daemon.paths import VmPaths
from ballast.daemon.serve import stop_signal
from ballast.qmp import client as qmp
from ballast_images.machine import shell_arguments
from ballast_protocol.errors import OperatorError, TimedOutError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often to look whether a worker serves the VM yet."""

RESTART_SECONDS = 1.0
"""How long a keeper that has ended stays away: one that cannot run is not started over and over."""

END_SECONDS = 5.0
"""How long a keeper may take to end on SIGTERM before it is killed."""


async def launch_beside(plan: LaunchPlan, worker_timeout_seconds: float) -> int:
    """Run a keeper, wait for a worker, and run QEMU until a signal comes or QEMU ends.

    Args:
        plan: The VM.
        worker_timeout_seconds: How long a worker may take to serve it.

    Returns:
        QEMU's exit status; negative for a signal.

    Raises:
        OperatorError: The keeper or QEMU cannot be run, or a signal came before QEMU was.
        TimedOutError: No worker serves the VM in time.
    """
    stop = asyncio.create_task(stop_signal())
    # A signal that comes while things start must find somebody who listens.
    await asyncio.sleep(0)
    try:
        async with KeeperBeside(default_socket()) as keeper:
            waiting = asyncio.create_task(worker_serves(plan, worker_timeout_seconds))
            await _first(stop, waiting, asyncio.create_task(keeper.ended()))
            keeper.keep_going()
            command = [*plan.command(), *plan.own_arguments(), *_guest_shell(plan)]
            return await run_qemu(plan, command, stop)
    finally:
        stop.cancel()


def _guest_shell(plan: LaunchPlan) -> tuple[str, ...]:
    """Return the port on which our own guest runs commands, for whoever tries things out."""
    return shell_arguments(VmPaths(plan.config.name).shell) if plan.image is not None else ()


async def _first(
    stop: asyncio.Task[Any], serves: asyncio.Task[None], ended: asyncio.Task[int]
) -> None:
    """Wait until a worker serves; raise if something else comes first."""
    await asyncio.wait({stop, serves, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if serves.done():
        serves.result()
        return
    serves.cancel()
    if stop.done():
        raise OperatorError(f"stopped by {stop.result().name} before a worker served the VM")
    raise OperatorError(
        "the keeper could not run; it has said why", hint="Is another one there already?"
    )


async def worker_serves(plan: LaunchPlan, timeout_seconds: float) -> None:
    """Wait until a worker answers for a VM, so listens for its QEMU, and has a keeper.

    A socket that is there proves nothing: a worker that was killed leaves its own behind. And one
    that served the VM before it was started again may not have found the new keeper yet.

    Raises:
        TimedOutError: None does in time.
    """
    paths, socket = VmPaths(plan.config.name), default_socket()
    serve = f"ballast serve {plan.config.name} --keeper {socket} --qemu-qmp {paths.monitor}"
    log.warning("waiting for a worker: %s", serve)
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                if await _is_kept(paths.qmp):
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise TimedOutError(
            f"no worker served {plan.config.name} within {timeout_seconds:g} s",
            hint=f"Where it is to run: {serve}",
        ) from None


async def _is_kept(socket: Path) -> bool:
    try:
        async with qmp.connect(socket) as client:
            keeper = (await client.query("ballast-status")).get("keeper")
    except OperatorError:
        return False
    return (
        isinstance(keeper, Mapping)
        and keeper.get("mode") == "service"
        and keeper.get("keeper-pid") is not None
    )


class KeeperBeside:
    """A keeper as a child; an asynchronous context manager that starts and ends it.

    Args:
        path: Where it listens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KeeperBeside:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperatorError(f"cannot make {self._path.parent}: {error.strerror}") from error
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await self._end()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        assert self._process is not None
        return await self._process.wait()

    def keep_going(self) -> None:
        """From now on start another one whenever it ends: the worker brings it all it needs."""
        self._keeping = asyncio.create_task(self._keep_going())

    async def _keep_going(self) -> None:
        while True:
            log.error("the keeper ended with status %d; starting another", await self.ended())
            await asyncio.sleep(RESTART_SECONDS)
            await self._start()

    async def _start(self) -> None:
        # In a session of its own: Ctrl-C in a terminal is for QEMU, which has to end first.
        self._process = await asyncio.create_subprocess_exec(
            *keeper_command("--socket", str(self._path)), start_new_session=True
        )

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

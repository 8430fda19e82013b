"""Serves many VMs from one process until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from ballast.daemon.attached import AttachedVm
from ballast.daemon.config import VmConfig
from ballast.daemon.fleet import check_files, in_fleets
from ballast.daemon.kept import Kept
from ballast.daemon.logs import context_of
from ballast.daemon.served import ServedVm
from ballast.daemon.vm import VirtualMachine
from ballast.streams.fdstore import FdStore, NoStore, VmStore
from ballast_protocol.errors import OperatorError, StateError

log = logging.getLogger(__name__)


def make_vm(config: VmConfig, *, store: VmStore, kept: Kept | None) -> ServedVm:
    """Return what serves a VM: with a balloon of ours, or attached to QEMU's own."""
    if config.attach is not None:
        return AttachedVm(config, store=store, kept=kept)
    return VirtualMachine(config, store=store, kept=kept)


@asynccontextmanager
async def serving(
    configs: Iterable[VmConfig],
    *,
    store: FdStore | None = None,
    left: dict[str, int] | None = None,
    kept: Kept | None = None,
) -> AsyncIterator[list[ServedVm]]:
    """Serve VMs while the context lasts; if one cannot start, none stays.

    If one cannot be taken over from a predecessor, what it left of that one stays in the store, for
    a version that can; its QEMU waits.

    Args:
        configs: The VMs.
        store: Where descriptors are kept for a successor of this process.
        left: What its `take_all` returned; taken over here.
        kept: What is known of whoever keeps them.

    Raises:
        OperatorError: A VM cannot be served.
    """
    store, left, configs = store or NoStore(), left or {}, list(configs)
    if kept is None or not kept.is_restart:
        check_files(configs)
    async with AsyncExitStack() as stack:
        machines: list[ServedVm] = []
        try:
            for config in configs:
                part = VmStore(store, config.name, left)
                for what in part.left:
                    del left[f"{config.name}/{what}"]
                machine = await _started(config, part, kept)
                if machine is not None:
                    stack.push_async_callback(machine.close)
                    machines.append(machine)
        except BaseException:
            if kept is not None and kept.is_restart:
                stack.pop_all()
            raise
        if not machines:
            raise StateError("no VM could be taken over; the log says why")
        _drop(store, left)
        await stack.enter_async_context(in_fleets(machines, configs))
        yield machines


async def _started(config: VmConfig, part: VmStore, kept: Kept | None) -> ServedVm | None:
    """Return a VM that is being served; None if what a predecessor left of it cannot be used."""
    machine = None
    try:
        machine = make_vm(config, store=part, kept=kept)
        await asyncio.create_task(machine.start(), context=context_of(machine.name))
    except StateError as error:
        if kept is None or kept.takeover.kind not in ("restart", "upgrade-failed"):
            raise  # in an upgrade, the version before comes back
        log.error(
            "%s cannot be taken over, and its QEMU waits: %s %s", config.name, error, error.hint
        )
        part.freeze()
        if machine is not None:
            await machine.close()
        part.drop_rest()
        return None
    return machine


def _drop(store: FdStore, left: dict[str, int]) -> None:
    """Let go of what a predecessor left of VMs that are not served any more."""
    while left:
        name, fd = left.popitem()
        os.close(fd)
        if "/" in name:
            store.drop(name)


async def stop_signal() -> signal.Signals:
    """Wait for SIGTERM or SIGINT and return it; the second of either ends the process as usual."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[signal.Signals] = loop.create_future()
    signals = (signal.SIGTERM, signal.SIGINT)

    def take(number: signal.Signals) -> None:
        if not arrived.done():
            arrived.set_result(number)

    for number in signals:
        loop.add_signal_handler(number, take, number)
    try:
        return await arrived
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


T = TypeVar("T")


async def unless_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Do some work to its end, unless SIGTERM or SIGINT comes first; then it is cancelled.

    Raises:
        OperatorError: A signal came; the work has cleaned up behind itself.
    """
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(stop_signal())
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    if stop.done():
        task.cancel()
        await asyncio.wait({task})
        raise OperatorError(f"stopped by {stop.result().name}")
    stop.cancel()
    return await task


def allow_open_files() -> None:
    """Raise the limit of open files as far as we may: each region of a guest's memory takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(configs: Iterable[VmConfig]) -> None:
    """Serve VMs until SIGTERM or SIGINT.

    Raises:
        OperatorError: A VM cannot be served.
    """
    allow_open_files()
    async with serving(configs) as machines:
        for machine in machines:
            log.info("%s: waiting for QEMU in %s", machine.name, machine.paths.directory)
        number = await stop_signal()
        log.info("%s: stopping", number.name)
        warn_of_the_connected(machines)


def warn_of_the_connected(machines: Iterable[ServedVm]) -> None:
    """Say what becomes of QEMUs that are still connected when everything ends."""
    for machine in machines:
        if machine.vmm_pid is not None:
            log.warning(
                "%s: QEMU (process %d) is still connected; it cannot go on for long without "
                "its balloon: stop it too",
                machine.name,
                machine.vmm_pid,
            )

"""Serves many VMs from one process until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from ballast.daemon.config import VmConfig
from ballast.daemon.logs import context_of
from ballast.daemon.vm import VirtualMachine
from ballast_protocol.errors import OperatorError

log = logging.getLogger(__name__)


@asynccontextmanager
async def serving(configs: Iterable[VmConfig]) -> AsyncIterator[list[VirtualMachine]]:
    """Serve VMs while the context lasts; if one cannot start, none stays.

    Raises:
        OperatorError: A VM cannot be served.
    """
    async with AsyncExitStack() as stack:
        machines = []
        for config in configs:
            machine = VirtualMachine(config)
            await asyncio.create_task(machine.start(), context=context_of(machine.name))
            stack.push_async_callback(machine.close)
            machines.append(machine)
        yield machines


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
        for machine in machines:
            if machine.vmm_pid is not None:
                log.warning(
                    "%s: QEMU (process %d) is still connected; it cannot go on for long without "
                    "its balloon: stop it too",
                    machine.name,
                    machine.vmm_pid,
                )

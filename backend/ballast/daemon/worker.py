"""`ballast serve` as a worker: takes over what a keeper holds, and may be killed at any moment.

It ends in two ways. *Leaving* is ending between two callbacks and letting everything be: sockets,
rings and state stay as they are, for the next worker. *Stopping* closes everything for good.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ballast.daemon import lasting, wishes
from ballast.daemon.alive import SignOfLife
from ballast.daemon.config import VmConfig
from ballast.daemon.keeping import (
    NewKeeper,
    become_parent,
    channel_from,
    keeper_at,
    keeper_from,
    wait_for_keeper,
    worker_command,
)
from ballast.daemon.kept import Kept, Mode
from ballast.daemon.serve import (
    allow_open_files,
    serve,
    serving,
    stop_signal,
    warn_of_the_connected,
)
from ballast.daemon.served import ServedVm
from ballast.keeper.client import DismissedError, KeeperStore, Takeover
from ballast.keeper.messages import Message
from ballast.keeper.systemd import SystemdStore, is_offered
from ballast.streams import busy_polling
from ballast.streams.fdstore import FdStore
from ballast_protocol.errors import BallastError, OperatorError

log = logging.getLogger(__name__)

CONFIG = "config"
"""The name under which the configuration is kept, for a successor in the same version: what the
file says by then may be wrong, or meant for an upgrade."""

STARTS = "starts"
"""The name under which starts are counted where no keeper does."""

RECONNECT_SECONDS = 1.0
"""How often to look for another keeper when ours is gone."""

Load = Callable[[], list[VmConfig]]
Run = Callable[[Coroutine[Any, Any, None]], None]


def serve_kept(
    load: Load,
    *,
    keeper: str | None,
    no_keeper: bool,
    keeper_timeout_seconds: float,
    watchdog: bool = True,
    busy_poll_seconds: float = 0.0,
) -> None:
    """Serve VMs, and leave what has to outlive this process with whoever is to keep it.

    Args:
        load: Reads the configuration; may raise OperatorError.
        keeper: `parent`, `systemd`, or where a keeper listens; None for systemd if it offers
            itself, and otherwise for a parent.
        no_keeper: Whether nobody is to keep anything.
        keeper_timeout_seconds: How long to wait for a keeper to listen.
        watchdog: Whether a parent is to replace a process that hangs.
        busy_poll_seconds: How long to look for work before sleeping, at most.

    Raises:
        OperatorError: A VM cannot be served.
        TimedOutError: No keeper listens.
    """
    run = partial(busy_polling.run, busy_poll_seconds=busy_poll_seconds)
    channel = channel_from(os.environ)
    if channel is not None:
        keep = keeper_from(worker_command())
        work(KeeperStore(channel), "parent", load, keep, run=run, watchdog=watchdog)
    elif no_keeper:
        run(serve(load()))
    elif keeper == "systemd" or (keeper is None and is_offered(os.environ)):
        run(serve_from_systemd(load()))
    elif keeper in (None, "parent"):
        become_parent(load())
    else:
        path = Path(str(keeper))
        sock = wait_for_keeper(path, keeper_timeout_seconds, log.warning)
        work(KeeperStore(sock), "service", load, keeper_at(path), run=run)


def work(
    store: KeeperStore,
    mode: Mode,
    load: Load,
    new_keeper: NewKeeper,
    *,
    run: Run = asyncio.run,
    watchdog: bool = False,
) -> None:
    """Wait for the keeper's order, and serve.

    Args:
        store: The channel to the keeper.
        mode: What the keeper is.
        load: Reads the configuration.
        new_keeper: Returns a channel to another keeper when ours is gone; may raise OSError.
        watchdog: Whether the keeper is to see that we do not hang.
        run: Runs the daemon until it ends.

    Raises:
        OperatorError: What is to be served cannot be.
    """
    fresh: list[VmConfig] = []

    def check(left: dict[str, int]) -> None:
        fresh[:] = load()
        check_left(left, fresh)

    lasting.warm_up()
    wishes.warm_up()
    try:
        takeover = store.wait(check)
        left = store.take_all()
        if fresh or not takeover.kind.startswith(("restart", "upgrade-failed")):
            configs = fresh or load()
        else:
            configs = recalled(left) or load()
        run(_serve(store, mode, takeover, left, configs, new_keeper, watchdog=watchdog))
    except DismissedError:
        return
    except BallastError as error:
        store.complain(str(error))
        raise
    except Exception as error:
        store.complain(f"a bug of ours: {type(error).__name__}: {error}")
        raise


def check_left(left: Mapping[str, int], configs: Sequence[VmConfig]) -> None:
    """Look at what would be taken over.

    Raises:
        OperatorError: It cannot be.
    """
    wishes.check(left)
    lasting.check(left)
    names = {config.name for config in configs}
    for name in left:
        vm, _, what = name.rpartition("/")
        if what == "connection" and vm not in names:
            raise OperatorError(f"VM {vm!r} is in use, and not in the configuration any more")


def remember(store: FdStore, configs: Sequence[VmConfig]) -> None:
    """Keep the configuration for successors."""
    fd = os.memfd_create(CONFIG, os.MFD_CLOEXEC)
    try:
        values = [config.model_dump(mode="json") for config in configs]
        os.write(fd, json.dumps(values).encode())
        store.put(CONFIG, fd)
    finally:
        os.close(fd)


def recalled(left: dict[str, int]) -> list[VmConfig]:
    """Return the configuration that a predecessor kept; empty if we understand none."""
    fd = left.get(CONFIG)
    if fd is None:
        return []
    try:
        values = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        return [VmConfig.model_validate(value) for value in values]
    except (ValueError, TypeError, OSError) as error:
        log.warning("the configuration of the worker before cannot be read: %s", error)
        return []


def count_starts(store: FdStore, left: dict[str, int]) -> int:
    """Return how often this was done before, where nobody else counts."""
    fd = left.pop(STARTS, None)
    if fd is None:
        fd = os.memfd_create(STARTS, os.MFD_CLOEXEC)
        store.put(STARTS, fd)
    try:
        count = int.from_bytes(os.pread(fd, 8, 0), "little")
        os.pwrite(fd, (count + 1).to_bytes(8, "little"), 0)
        return count
    finally:
        os.close(fd)


async def serve_from_systemd(configs: list[VmConfig]) -> None:
    """Serve VMs and leave everything with systemd; a signal ends this process, and no more.

    Whether its service is restarted or stopped, which systemd does not tell, is for systemd.

    Raises:
        OperatorError: A VM cannot be served, or systemd is not there.
    """
    allow_open_files()
    try:
        store = SystemdStore(os.environ)
    except (KeyError, OSError) as error:
        raise OperatorError(
            f"systemd cannot be reached: {error}",
            hint="Run as a service with Type=notify and FileDescriptorStoreMax=4096.",
        ) from error
    left = store.take_all()
    reason = "systemd started the service again"
    takeover = Takeover("restart" if left else "start", reason, restarts=count_starts(store, left))
    kept = Kept("systemd", takeover, os.getppid())
    check_left(left, configs)
    async with serving(configs, store=store, left=left, kept=kept) as machines:
        store.ready()
        announce(kept, machines)
        leave((await stop_signal()).name)


async def _serve(
    store: KeeperStore,
    mode: Mode,
    takeover: Takeover,
    left: dict[str, int],
    configs: list[VmConfig],
    new_keeper: NewKeeper,
    *,
    watchdog: bool,
) -> None:
    allow_open_files()
    kept = Kept(mode, takeover, store.keeper_pid, ask=store.ask_for_upgrade)
    remember(store, configs)
    async with serving(configs, store=store, left=left, kept=kept) as machines:
        link = KeeperLink(store, kept, machines, new_keeper)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave, number.name)
        kept.serving()
        life = SignOfLife(store) if watchdog else None
        store.ready()
        announce(kept, machines)
        await link.until_stopped()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        warn_of_the_connected(machines)
    if life is not None:
        life.close()
    store.close()


def announce(kept: Kept, machines: Sequence[ServedVm]) -> None:
    """Tell operators that this process serves, and why."""
    if kept.is_restart:
        gap = "" if kept.gap_seconds is None else f" after {kept.gap_seconds * 1000:.0f} ms"
        log.warning("took over%s: %s", gap, kept.reason)
    for machine in machines:
        if kept.is_restart:
            machine.emit(
                "BALLAST_RESTARTED", {"reason": kept.reason, "gap-seconds": kept.gap_seconds}
            )
        elif machine.vmm_pid is None:
            log.info("%s: waiting for QEMU in %s", machine.name, machine.paths.directory)


def leave(why: str) -> None:
    """End here and now. Between two callbacks everything is whole, and a successor goes on."""
    log.info("leaving: %s", why)
    logging.shutdown()
    os._exit(0)


class KeeperLink:
    """Follows the keeper's orders, and finds another keeper if it is gone."""

    def __init__(
        self,
        store: KeeperStore,
        kept: Kept,
        machines: Sequence[ServedVm],
        new_keeper: NewKeeper,
    ) -> None:
        self._store = store
        self._kept = kept
        self._machines = {machine.name: machine for machine in machines}
        self._new_keeper = new_keeper
        self._loop = asyncio.get_running_loop()
        self._last_look = 0.0
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(store.fileno(), self._readable)

    async def until_stopped(self) -> None:
        """Serve until the keeper says that it is over for good."""
        await self._stopped
        self._loop.remove_reader(self._store.fileno())

    def _readable(self) -> None:
        while (received := self._store.read()) is not None:
            message, fds = received
            self._obey(message, fds)
            for fd in fds:
                os.close(fd)
        if self._store.is_lost and not self._stopped.done():
            self._lost()

    def _obey(self, message: Message, fds: list[int]) -> None:
        if "CONNECTION" in message and fds:
            machine = self._machines.get(message.get("FDNAME", "").rpartition("/")[0])
            if machine is not None:
                machine.offer(socket.socket(fileno=fds.pop(0)))
        elif "STOP" in message:
            log.info("stopping")
            if not self._stopped.done():
                self._stopped.set_result(None)
        elif "LEAVE" in message:
            leave("another version takes over")
        elif "FAILED" in message:
            log.error("the upgrade has failed: %s", message["FAILED"])
            self._kept.takeover = self._store.takeover
        elif "REJECTED" in message:
            log.error("the keeper cannot hold %s: it would be lost", message["REJECTED"])
        elif "REFUSED" in message:
            log.error("the new keeper does not take us: %s", message["REFUSED"])

    # Without a keeper ------------------------------------------------------------------------

    def _lost(self) -> None:
        """Go on serving: the VMs live as long as this process does. If there are none, end."""
        self._loop.remove_reader(self._store.fileno())
        vms = [each.name for each in self._machines.values() if each.vmm_pid is not None]
        if self._kept.mode == "parent" and not vms:
            log.error(
                "the keeper (process %s) is gone, and no QEMU is there", self._kept.keeper_pid
            )
            self._stopped.set_result(None)
            return
        log.error(
            "the keeper (process %s) is gone. VMs go on, but if this process ends too they are "
            "lost; looking for another keeper",
            self._kept.keeper_pid,
        )
        self._kept.keeper_pid = None
        for machine in self._machines.values():
            machine.name_holder(os.getpid())
        # A keeper that was killed and not replaced for a second is looked for at once; one that
        # ends as soon as it has begun is not started over and over.
        wait = max(0.0, self._last_look + RECONNECT_SECONDS - self._loop.time())
        self._loop.call_later(wait, self._look_for_another)

    def _look_for_another(self) -> None:
        if self._stopped.done():
            return
        self._last_look = self._loop.time()
        try:
            self._store.move_to(*self._new_keeper())
        except OSError as error:
            log.debug("no keeper yet: %s", error)
            self._loop.call_later(RECONNECT_SECONDS, self._look_for_another)
            return
        self._kept.keeper_pid = self._store.keeper_pid
        self._loop.add_reader(self._store.fileno(), self._readable)
        for machine in self._machines.values():
            machine.name_holder(self._store.keeper_pid or os.getpid())
        log.warning("another keeper (process %s) holds everything now", self._store.keeper_pid)

"""A VM whose balloon is QEMU's own: the same interfaces for operators, through QEMU's monitor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from ballast.daemon.config import VmConfig
from ballast.daemon.governor import GovernorLoop
from ballast.daemon.kept import Kept
from ballast.daemon.paths import NameLock, VmPaths
from ballast.daemon.version import qmp_version
from ballast.daemon.wishes import Wishes
from ballast.memory.residency import rss_bytes, rss_shmem_bytes
from ballast.policy.resize import Observation, attainable, is_there
from ballast.qmp.builtin import BuiltinBalloon, BuiltinStats
from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.server import QmpServer
from ballast.streams.fdstore import VmStore, no_store
from ballast.streams.listening import kept_listener
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import ErrorClass, RefusedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often to look at what QEMU sends no events about."""


class AttachedVm:
    """QEMU's own balloon, and everything that speaks for it.

    Implements `daemon.served.ServedVm` and `daemon.governor.Steered`.

    Attributes:
        name: The VM's name.
        paths: Its sockets.
        kept: Who holds its descriptors.
        governor: Who decides what the guest is asked for.
        blocks: None: there is no agent to help QEMU's balloon.
    """

    blocks = None
    vmm_pid: int | None = None
    """QEMU needs nothing of us."""

    def __init__(
        self,
        config: VmConfig,
        *,
        paths: VmPaths | None = None,
        store: VmStore | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Make everything; nothing listens before `start`.

        Args:
            config: What it is to be; `attach` says where QEMU's monitor is.
            paths: Its sockets, if they are not where they usually are.
            store: Where its descriptors are kept for a successor of this process.
            kept: What is known of whoever keeps them.
        """
        assert config.attach is not None
        self._store = store or no_store(config.name)
        self._wishes = Wishes(self._store)
        self.kept = kept or Kept()
        self.name = config.name
        self.paths = paths or VmPaths(config.name)
        self._monitor = QemuMonitor(config.attach)
        self._monitor.events.append(self._qemu_event)
        self._monitor.changes.append(self._qemu_changed)
        self._balloon = BuiltinBalloon(self._monitor)
        self._qmp = QmpServer(
            *(self, self.paths.qmp, qmp_version()), monitor=self._monitor, is_balloon_qemus=True
        )
        self._asked: int | None = None
        self._refused = ""
        self._interval = config.stats_polling_interval
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._lock: NameLock | None = None
        self._mqtt_status: Callable[[], Mapping[str, object]] | None = None
        self.governor = GovernorLoop(self, config.governor(), save=self._wishes.save_governor)
        self.governor.begin(self._wishes.governor())

    # Life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the name, listen for operators, and begin to look for QEMU.

        Raises:
            OperatorError: The name is taken or the socket cannot be used.
        """
        try:
            self._lock = NameLock(self.paths, self._store.take("lock"))
            self._store.put("lock", self._lock.fileno())
            self.name_holder(self.kept.keeper_pid or os.getpid())
            await self._qmp.start(kept_listener(self._store, "qmp-listener", self.paths.qmp))
            self._store.drop_rest()
        except BaseException:
            if not self.kept.is_restart:
                await self.close()
            raise
        self._looking = asyncio.create_task(self._look_on())

    async def close(self) -> None:
        """Leave QEMU alone, stop listening, give the name up; the target stays in force."""
        tasks = [*self._tasks, *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._qmp.close()
        self._store.drop("qmp-listener")
        self.governor.close()
        self._wishes.close()
        if self._lock is not None:
            self._lock.release()
            self._store.drop("lock")
            self._lock = None

    def name_holder(self, pid: int) -> None:
        """Write down which process is to be stopped to free the VM's name."""
        if self._lock is not None:
            self._lock.name_holder(pid)

    def offer(self, sock: socket.socket) -> None:
        """Nobody connects a device here."""
        sock.close()

    def join_fleet(
        self, take_event: Callable[[bytes], None], status: Callable[[], Mapping[str, object]]
    ) -> Wishes:
        """Have QMP events told over MQTT as well, and show how the connection is.

        Returns:
            Where the bridge's promises are kept.
        """
        self._qmp.tap_events(take_event)
        self._mqtt_status = status
        return self._wishes

    # What QEMU tells -------------------------------------------------------------------------

    def _qemu_changed(self) -> None:
        if self._monitor.greeting is None:
            self._balloon.forget()
            self.governor.look_soon()
        else:
            self._spawn(self._begin())

    async def _begin(self) -> None:
        """QEMU has come, or its guest stands still or goes on."""
        is_new = not self._balloon.path
        await self._balloon.look()
        if is_new and self._interval and self._balloon.path:
            await self._balloon.set_polling_interval(self._interval)
        if is_new and self._asked is not None:
            await self._balloon.ask(self._asked)
        self.governor.driver_started()

    def _qemu_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "BALLOON_CHANGE":
            self._balloon.actual_bytes = event["data"]["actual"]
            self.governor.actual_changed(self._balloon.actual_bytes)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._monitor.greeting is None:
                continue
            had_driver = self._balloon.has_driver
            with contextlib.suppress(RefusedError):
                await self._balloon.look()
            if self._balloon.has_driver and not had_driver:
                self.governor.driver_started()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._attempt(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RefusedError as error:
            self._refused = str(error)
            log.warning("%s: %s", self.name, error)
        else:
            self._refused = ""

    # What the governor asks ------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return what is known of the guest now."""
        has_driver = self._balloon.has_driver
        return Observation(
            is_connected=self._monitor.greeting is not None,
            is_running=has_driver and self._monitor.run_state == "running",
            ram_bytes=self.ram_bytes,
            # QEMU names a size without a driver, too.
            actual_bytes=self.actual_bytes if has_driver else None,
        )

    def ask(self, size_bytes: int | None) -> None:
        """Ask the guest for a size; None means all of its memory."""
        self._asked = self.ram_bytes if size_bytes is None else size_bytes
        if self._asked is not None and self._monitor.greeting is not None:
            self._spawn(self._balloon.ask(self._asked))

    def set_inhibited(self, inhibited: bool) -> None:
        """QEMU decides that for its own balloon, and nobody can tell it to.

        Raises:
            OperatorError: Always, if it is to be inhibited.
        """
        if inhibited:
            raise OperatorError(
                "this VM's balloon is QEMU's own, which gives nothing back by itself while memory "
                "is pinned"
            )

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Tell operators of an event."""
        self._qmp.emit(name, data)

    # What operators ask and see --------------------------------------------------------------

    @property
    def ram_bytes(self) -> int | None:
        """The machine's size, or None until QEMU has told."""
        return self._balloon.ram_bytes

    @property
    def target_bytes(self) -> int | None:
        """The size wanted, clamped to the machine's; None if none was set here."""
        target = self.governor.target_bytes
        return None if target is None else attainable(target, self.ram_bytes)

    @property
    def actual_bytes(self) -> int | None:
        """The size that the guest says it has, or None until QEMU has told."""
        return self._balloon.actual_bytes

    def set_target(self, target_bytes: int) -> None:
        """Ask the guest for a size; remembered if QEMU is not there yet.

        Raises:
            RefusedError: This VM has no balloon.
            OperatorError: This size cannot be asked for, or the target is on hold.
        """
        if self._monitor.greeting is not None and self._balloon.problem:
            raise RefusedError(self._balloon.problem, ErrorClass.DEVICE_NOT_ACTIVE)
        self.governor.set_target(target_bytes)

    @property
    def guest_stats(self) -> BuiltinStats:
        """The newest statistics."""
        return self._balloon.stats

    @property
    def stats_age_seconds(self) -> float | None:
        """How old they are; None if none ever came."""
        return self._balloon.stats_age_seconds

    @property
    def stats_polling_interval(self) -> int:
        """Seconds between two polls for statistics; 0 means that nobody polls."""
        return self._balloon.polling_interval

    @stats_polling_interval.setter
    def stats_polling_interval(self, seconds: int) -> None:
        self._interval = seconds
        if self._balloon.path:
            self._spawn(self._balloon.set_polling_interval(seconds))

    async def refresh_stats(self, timeout_seconds: float) -> None:
        """Have the guest asked for statistics, and return when they are there.

        Raises:
            OperatorError: There is no balloon that could be asked.
            TimedOutError: The guest did not answer in time.
        """
        await self._balloon.refresh_stats(timeout_seconds)

    def ledger_runs(self) -> Sequence[tuple[int, int]]:
        """QEMU's balloon keeps no books.

        Raises:
            OperatorError: Always.
        """
        raise _not_here("which keeps no books of the pages that it has been given")

    def start_hinting(self) -> None:
        """QEMU hints by itself, while it migrates.

        Raises:
            OperatorError: Always.
        """
        raise _not_here("which starts hinting by itself when it migrates")

    def stop_hinting(self) -> None:
        """QEMU hints by itself, while it migrates.

        Raises:
            OperatorError: Always.
        """
        raise _not_here("which ends hinting by itself when it has migrated")

    async def request_agent_report(self, timeout_seconds: float) -> Mapping[str, object]:
        """No agent is connected to QEMU's balloon.

        Raises:
            OperatorError: Always.
        """
        raise _not_here("and no agent is connected to that")

    def status(self) -> dict[str, object]:
        """Return everything there is to know, ready for JSON."""
        pid = self._monitor.pid
        return {
            "state": self._state(),
            "problem": self._balloon.problem or self._refused,
            "settled": is_there(self.actual_bytes, self.target_bytes or self.ram_bytes),
            "ledger": None,
            "blocks": None,
            "host": {
                "allocated-bytes": None,
                "rss-shmem-bytes": rss_shmem_bytes(pid) if pid else None,
                "rss-bytes": rss_bytes(pid) if pid else None,
            },
            "features": [],
            "features-offered": [],
            "hinting": None,
            "counters": {},
            "transport": {"transport": "qemu", "path": self._balloon.path, "connection": None},
            "agent": None,
            "mqtt": self._mqtt_status() if self._mqtt_status else None,
            "qemu": self._monitor.status(),
        }

    def _state(self) -> str:
        if self._monitor.greeting is None:
            return "waiting-for-qemu"
        if self._monitor.run_state != "running":
            return "paused"
        return "running" if self._balloon.has_driver else "waiting-for-driver"


def _not_here(why: str) -> OperatorError:
    return OperatorError(f"this VM's balloon is QEMU's own, {why}")

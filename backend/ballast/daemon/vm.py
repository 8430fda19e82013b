"""One VM: its device, its transport, its QMP socket and its agent link, wired together."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping

from ballast.balloon.device import BalloonDevice
from ballast.balloon.ledger import Ledger
from ballast.balloon.ranges import Run
from ballast.balloon.stats import GuestStatistics
from ballast.daemon import books
from ballast.daemon.blocks import HugeBalloon
from ballast.daemon.config import VmConfig
from ballast.daemon.freshness import Freshness
from ballast.daemon.governor import GovernorLoop
from ballast.daemon.kept import Kept
from ballast.daemon.lasting import Lasting
from ballast.daemon.paths import NameLock, VmPaths
from ballast.daemon.polling import Polling
from ballast.daemon.telling import SizeTelling
from ballast.daemon.transports import make_transport
from ballast.daemon.version import qmp_version
from ballast.daemon.wishes import Settings, Wishes
from ballast.guest_link.events import LinkEvent
from ballast.guest_link.link import GuestLink
from ballast.memory.reclaim_many import best_discard_many
from ballast.memory.residency import HostMemory
from ballast.policy.resize import Observation, attainable, is_there
from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.server import QmpServer
from ballast.streams.fdstore import VmStore, no_store
from ballast.streams.listening import kept_listener
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import BalloonFeature

log = logging.getLogger(__name__)


class VirtualMachine:
    """One balloon and everything that speaks for it.

    Implements `qmp.control.BalloonControl` towards operators, `balloon.listener.DeviceListener`
    towards the device and `daemon.governor.Steered` towards the governor.

    Attributes:
        name: The VM's name.
        paths: Its sockets.
        device: Its balloon.
        agent: Its link to the agent in the guest.
        kept: What is known of whoever holds its descriptors.
        governor: Who decides what the guest is asked for; nobody else sets the device's target.
        blocks: What that agent takes of the target.
    """

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
            config: What it is to be.
            paths: Its sockets, if they are not where they usually are.
            store: Where its descriptors are kept for a successor of this process.
            kept: What is known of whoever keeps them.

        Raises:
            OperatorError: The name cannot be one.
        """
        self._store = store or no_store(config.name)
        self.kept = kept or Kept()
        self._wishes = Wishes(self._store)
        self.name = config.name
        self.paths = paths or VmPaths(config.name)
        self._lasting = Lasting(self._store)
        self.device = BalloonDevice(
            self,
            balloon_features=config.features,
            ram_bytes=config.memory or 0,
            ledger=Ledger(self._lasting.chunks),
            cells=self._lasting.state.cells,
            discard_many=best_discard_many(),
        )
        self._transport = make_transport(
            config, self.device, self.paths, self._store, self._lasting.state, self.kept.mode
        )
        self._telling = SizeTelling(self.device, self._tell_size)
        self._monitor = QemuMonitor(config.qemu_qmp) if config.qemu_qmp else None
        if self._monitor is not None:
            self._monitor.events.append(self._qemu_event)
            self._monitor.changes.append(self._qemu_changed)
        self._qmp = QmpServer(
            *(self, self.paths.qmp, qmp_version()),
            monitor=self._monitor,
            balloon_id=config.device_id,
        )
        book = self.device.blocks if config.agent_blocks else None
        self.agent = GuestLink(
            self.paths.agent, book=book, on_event=self._link_changed, store=self._store
        )
        self.blocks = HugeBalloon(
            self.device,
            self.agent,
            sweeps=config.sweeps,
            resized=self._tell_size,
            divided=self._transport.notify_config,
            emit=self._qmp.emit,
            save=self._wishes.save_blocks,
        )
        settings = self._wishes.settings() or Settings(config.stats_polling_interval)
        self._polling = Polling(self._transport.request_statistics, settings.stats_polling_interval)
        self._freshness = Freshness(self.device, self._transport.request_statistics)
        self._lock: NameLock | None = None
        self._mqtt_status: Callable[[], Mapping[str, object]] | None = None
        self.governor = GovernorLoop(self, config.governor(), save=self._wishes.save_governor)
        self._counters = self._wishes.count(books.counters(self.device, self.agent))
        if (state := self._wishes.blocks()) is not None:
            self.blocks.restore(state)
        self._begin_governor(self._wishes.governor())

    def _begin_governor(self, values: Mapping[str, object] | None) -> None:
        try:
            self.governor.begin(values)
        except OperatorError as error:
            log.error("the target of the process before is lost: %s", error)
            self.governor.begin()

    # Life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the name and listen on all sockets.

        Raises:
            OperatorError: The name is taken or a socket cannot be used; nothing is left behind,
                except what was taken over, which is left as it is for another attempt.
        """
        try:
            self._lock = NameLock(self.paths, self._store.take("lock"))
            self._store.put("lock", self._lock.fileno())
            self.name_holder(self.kept.keeper_pid or os.getpid())
            await self._transport.start()
            # The name is ours, so a socket that is still there is that of a process that crashed.
            await self._qmp.start(kept_listener(self._store, "qmp-listener", self.paths.qmp))
            await self.agent.start()
            self._store.drop_rest()
        except BaseException:
            if not self.kept.is_restart:
                await self.close()
            raise
        self._polling.restart()
        self._counters.start()

    async def close(self) -> None:
        """Stop listening, let go of the guest's memory, give the name up."""
        await self._polling.close()
        await self.agent.close()
        self.blocks.close()
        self._telling.close()
        await self._qmp.close()
        self._store.drop("qmp-listener")
        await self._transport.close()
        self.governor.close()
        self._wishes.close()
        self._lasting.close()
        if self._lock is not None:
            self._lock.release()
            self._store.drop("lock")
            self._lock = None

    def name_holder(self, pid: int) -> None:
        """Write down which process is to be stopped to free the VM's name."""
        if self._lock is not None:
            self._lock.name_holder(pid)

    def offer(self, sock: socket.socket) -> None:
        """Serve a connection that was accepted by whoever keeps our descriptors."""
        self._transport.offer(sock)

    @property
    def vmm_pid(self) -> int | None:
        """The process whose guest is served, if one is connected."""
        return self._transport.session.pid if self._transport.session else None

    def join_fleet(
        self, take_event: Callable[[bytes], None], status: Callable[[], Mapping[str, object]]
    ) -> Wishes:
        """Have QMP's events told elsewhere too, show how that goes; return what outlives us."""
        self._qmp.tap_events(take_event)
        self._mqtt_status = status
        return self._wishes

    # What the device tells -------------------------------------------------------------------

    def config_changed(self) -> None:
        """Have the guest read its config space again, after the agent has got its part."""
        self.blocks.divide()
        self._transport.notify_config()

    def _link_changed(self, event: LinkEvent) -> None:
        self.blocks.link_changed(event)

    def actual_changed(self) -> None:
        """The guest has another size."""
        self._telling.changed()

    def _tell_size(self) -> None:
        """Tell operators of the guest's size."""
        actual = self.device.actual_bytes
        if actual is not None:
            self._qmp.emit("BALLOON_CHANGE", {"actual": actual})
            self.governor.actual_changed(actual)

    def _qemu_event(self, event: Mapping[str, object]) -> None:
        """Forget statistics with a machine reset, which the device cannot tell from a pause."""
        if event["event"] == "RESET" and not self.device.is_running:
            self.device.statistics.reset()

    def _qemu_changed(self) -> None:
        """Have the governor look at a guest that may stand still, or move again."""
        self.governor.look_soon()

    def driver_changed(self) -> None:
        """Have the governor begin with a driver, or notice that there is none."""
        self.blocks.look()
        if self.device.is_running:
            self.governor.driver_started()
        else:
            self.governor.look_soon()

    def statistics_received(self) -> None:
        """Wake whoever waits for new statistics."""
        self._freshness.note()

    # What operators ask ----------------------------------------------------------------------

    @property
    def ram_bytes(self) -> int | None:
        """The machine's size, or None until QEMU has shared its memory."""
        return self.device.ram_bytes or None

    @property
    def target_bytes(self) -> int | None:
        """The size wanted, clamped to the machine's; None if none was ever set."""
        target = self.governor.target_bytes
        return None if target is None else attainable(target, self.ram_bytes)

    @property
    def actual_bytes(self) -> int | None:
        """The size that the guest says it has, or None until its driver is active."""
        self._transport.refresh()
        return self.device.actual_bytes

    def set_target(self, target_bytes: int) -> None:
        """Ask the guest for a size; remembered if its driver is not there yet.

        Raises:
            OperatorError: This size cannot be asked for, or the target is on hold.
        """
        self.governor.set_target(target_bytes)

    # What the governor asks ------------------------------------------------------------------

    def observe(self) -> Observation:
        """Return what is known of the guest now."""
        actual_bytes, device = self.actual_bytes, self.device
        return Observation(
            is_connected=self._transport.session is not None,
            is_running=device.is_running and not self._is_paused,
            ram_bytes=self.ram_bytes,
            actual_bytes=actual_bytes,
            attempts=device.metrics.config_writes or None,
        )

    def ask(self, size_bytes: int | None) -> None:
        """Ask the guest for a size, as the governor has decided."""
        self.device.set_target(size_bytes)
        self.blocks.insist()

    def set_inhibited(self, inhibited: bool) -> None:
        """Give nothing back to the host from now on, or do again."""
        self.device.pages.is_inhibited = inhibited
        self.blocks.look()

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Tell operators of an event."""
        self._qmp.emit(name, data)

    # What operators see ----------------------------------------------------------------------

    @property
    def guest_stats(self) -> GuestStatistics:
        """The newest statistics."""
        return self.device.statistics

    @property
    def stats_age_seconds(self) -> float | None:
        """How old they are, by a clock that nobody sets; None if none ever came."""
        return self._freshness.age_seconds

    @property
    def stats_polling_interval(self) -> int:
        """Seconds between two polls for statistics; 0 means that nobody polls."""
        return self._polling.interval_seconds

    @stats_polling_interval.setter
    def stats_polling_interval(self, seconds: int) -> None:
        self._polling.interval_seconds = seconds
        self._wishes.save_settings(Settings(seconds))
        self._polling.restart()

    async def refresh_stats(self, timeout_seconds: float) -> None:
        """Ask the guest for statistics, and return when they are there.

        Raises:
            OperatorError: The guest's driver does not offer statistics, or no driver is at work.
            TimedOutError: The guest did not answer in time.
        """
        await self._freshness.refresh(timeout_seconds)

    def start_hinting(self) -> None:
        """Start a round of free-page hints.

        Raises:
            OperatorError: The guest's driver has not accepted hints.
        """
        self.device.start_hinting()

    def stop_hinting(self) -> None:
        """End the round, so that the guest takes its pages back."""
        self.device.finish_hinting()

    async def request_agent_report(self, timeout_seconds: float) -> Mapping[str, object]:
        """Ask the agent in the guest for a fresh memory report, and return it.

        Raises:
            OperatorError: No agent is connected.
            TimedOutError: The agent did not answer in time.
        """
        await self.agent.request_report(timeout_seconds)
        return self.agent.status()

    @property
    def ledger_bytes(self) -> int:
        """How much the guest has given up by our books, through its kernel and its agent."""
        return books.given_up_bytes(self.device)

    def ledger_runs(self) -> list[Run]:
        """Return the pages that the guest's kernel has given up, as (first page, count)."""
        return list(self.device.pages.ledger.runs())

    def status(self) -> dict[str, object]:
        """Return everything there is to know, ready for JSON."""
        self._transport.refresh()
        device, host = self.device, self.host_memory()
        return {
            "state": self._state(),
            "problem": books.problem(device, self._transport.session),
            "settled": is_there(self.actual_bytes, self.target_bytes or self.ram_bytes),
            "ledger": books.status(device),
            "blocks": self.blocks.status(),
            "host": {
                "allocated-bytes": host.allocated_bytes,
                "rss-shmem-bytes": host.rss_shmem_bytes,
            },
            "features": [bit.name for bit in BalloonFeature if device.driver_features & bit],
            "features-offered": [bit.name for bit in BalloonFeature if device.offered & bit],
            "hinting": {
                "state": device.hinting.state.value,
                "hinted-bytes": device.hinting.hinted_bytes,
            },
            "counters": self._counters.told("balloon"),
            "transport": self._transport.status(),
            "agent": self.agent.status(),
            "mqtt": self._mqtt_status() if self._mqtt_status else None,
            "qemu": self._monitor.status() if self._monitor else None,
        }

    def _state(self) -> str:
        if self._transport.session is None:
            return "waiting-for-qemu"
        if self.device.is_running:
            return "paused" if self._is_paused else "running"
        return "paused" if self.device.was_started else "waiting-for-driver"

    @property
    def _is_paused(self) -> bool:
        """Whether QEMU says that the guest stands still; over vfio-user nothing else does."""
        run_state = self._monitor.run_state if self._monitor else None
        return run_state not in (None, "running")

    def host_memory(self) -> HostMemory:
        """Return how much of the guest's memory is really here, measured in two ways."""
        return books.host_memory(self.device, self.vmm_pid)

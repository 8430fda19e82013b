"""Looks at VMs and says how they are: states when they change, statistics when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from ballast.mqtt import payloads
from ballast.mqtt.discovery import Discovery
from ballast.mqtt.outbox import Outbox
from ballast.mqtt.topics import OFFLINE, ONLINE, Topics
from ballast.qmp.control import BalloonControl
from ballast_protocol.errors import OperatorError

log = logging.getLogger(__name__)

STATS_TIMEOUT_SECONDS = 5.0
"""How long a guest may take to send statistics before the old ones are sent with their age."""

REST_FACTOR = 20
"""How much longer than a look at a VM took is the rest after it."""

MAX_ASKED = 32
"""How many guests are asked for statistics at the same time."""


class Reporter:
    """Reports on the VMs of this host."""

    def __init__(
        self,
        topics: Topics,
        vms: Mapping[str, BalloonControl],
        outbox: Outbox,
        discovery: Discovery | None,
        unix_seconds: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._vms = vms
        self._outbox = outbox
        self._discovery = discovery
        self._unix_seconds = unix_seconds
        self._failing: set[str] = set()
        self._documented: dict[str, int | None] = {}
        self._stirred: set[str] = set()
        self._is_stirred = asyncio.Event()
        self._asked = asyncio.Semaphore(MAX_ASKED)

    # States -----------------------------------------------------------------------------------

    async def watch(self, interval_seconds: float) -> None:
        """Say again and again what has changed; never returns.

        VMs that have made themselves felt are looked at after the interval, the others one after
        the other, so that many VMs do not cost much more than few.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_all(interval_seconds))
            group.create_task(self._watch_stirred(interval_seconds))

    def stir(self, vm_name: str) -> None:
        """Have a VM looked at soon, because something has happened to it."""
        self._stirred.add(vm_name)
        self._is_stirred.set()

    async def _watch_all(self, interval_seconds: float) -> None:
        while True:
            await self._look_at_each(list(self._vms))
            await asyncio.sleep(interval_seconds)

    async def _watch_stirred(self, interval_seconds: float) -> None:
        while True:
            await self._is_stirred.wait()
            self._is_stirred.clear()
            stirred, self._stirred = self._stirred, set()
            await self._look_at_each(stirred)
            await asyncio.sleep(interval_seconds)

    async def _look_at_each(self, names: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        for name in names:
            started = loop.time()
            self._guarded(self._vms[name], self.look_at)
            # Each takes a moment, and there may be hundreds: balloons come first.
            await asyncio.sleep((loop.time() - started) * REST_FACTOR)

    def look_at(self, vm: BalloonControl) -> None:
        """Say how a VM is, if that has changed."""
        status = vm.status()
        topics = self._topics.vm(vm.name)
        if self._discovery is not None and self._documented.get(vm.name, 0) != vm.ram_bytes:
            self._documented[vm.name] = vm.ram_bytes
            document = self._discovery.document(vm.name, vm.ram_bytes)
            self._outbox.retain(self._discovery.topic(vm.name), payloads.encode(document))
        available = payloads.is_available(status)
        self._outbox.retain(topics.availability, ONLINE if available else OFFLINE)
        self._outbox.retain(topics.state, payloads.encode(payloads.state(vm, status)))

    def forget(self, vm_name: str) -> None:
        """Have the broker forget a VM that is not served any more."""
        topics = self._topics.vm(vm_name)
        if self._discovery is not None:
            self._outbox.forget(self._discovery.topic(vm_name))
        self._outbox.forget(topics.state)
        self._outbox.forget(topics.availability)

    def _guarded(self, vm: BalloonControl, report: Callable[[BalloonControl], None]) -> None:
        try:
            report(vm)
            self._failing.discard(vm.name)
        except Exception:
            if vm.name not in self._failing:
                self._failing.add(vm.name)
                log.exception("MQTT: cannot tell how %s is", vm.name)

    # Statistics -------------------------------------------------------------------------------

    async def tell_stats(self) -> None:
        """Ask every guest for its statistics and send what is known then."""
        await _all(self._tell_stats_of(vm) for vm in self._vms.values())

    async def _tell_stats_of(self, vm: BalloonControl) -> None:
        async with self._asked:
            problem = await self._refresh(vm)
            self._guarded(vm, lambda vm: self._put_stats(vm, problem))

    async def _refresh(self, vm: BalloonControl) -> str:
        """Have new statistics in `guest_stats`; return why there are none, or nothing."""
        try:
            await vm.refresh_stats(STATS_TIMEOUT_SECONDS)
        except OperatorError as error:
            return str(error)
        except Exception as error:
            log.debug("MQTT: statistics of %s", vm.name, exc_info=True)
            return f"internal error: {error}"
        return ""

    def _put_stats(self, vm: BalloonControl, problem: str) -> None:
        stats = payloads.stats(vm, vm.status(), self._unix_seconds(), problem)
        self._outbox.fleeting(self._topics.vm(vm.name).stats, payloads.encode(stats))


async def _all(reports: Iterable[object]) -> None:
    async with asyncio.TaskGroup() as group:
        for report in reports:
            group.create_task(report)  # type: ignore[arg-type]

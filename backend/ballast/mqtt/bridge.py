"""Keeps a connection to an MQTT broker for as long as the daemon lives.

Everything that goes out passes through the outbox, and everything that comes in is taken over at
once; so whatever the broker does, or does not, no VM waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict

import aiomqtt

from ballast.mqtt.backoff import Backoff
from ballast.mqtt.command import Request
from ballast.mqtt.config import MqttConfig
from ballast.mqtt.desk import Desk
from ballast.mqtt.discovery import Discovery
from ballast.mqtt.outbox import Outbox, Outgoing
from ballast.mqtt.promises import Promises, promises
from ballast.mqtt.reporter import Reporter
from ballast.mqtt.session import BrokerError, Session, connected, explain
from ballast.mqtt.topics import OFFLINE, ONLINE, Topics
from ballast.qmp.control import BalloonControl
from ballast_protocol.errors import OperatorError

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 16
"""How many messages are on their way at the same time."""

FAREWELL_SECONDS = 3.0
"""How long the end of the daemon waits for the broker to take what is left."""


Keeper = Callable[[Promises], None]
"""Keeps what is promised for a successor of this process."""


class Bridge:
    """A host's VMs at a broker.

    Attributes:
        config: Where the broker is, and what it is told.
        topics: The topics of this host.
        outbox: What is to be published.
        desk: Where commands arrive.
    """

    def __init__(
        self,
        config: MqttConfig,
        vms: Iterable[BalloonControl],
        *,
        version: str,
        unix_seconds: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Prepare everything; nothing is connected before `run`.

        Args:
            config: Where the broker is, and what it is told.
            vms: The VMs.
            version: Ballast's version.
            unix_seconds: The wall clock.
            chance: Gives numbers from 0 to 1.
        """
        self.config = config
        self.topics = Topics(config.prefix, config.host)
        self.outbox = Outbox(config.queue_limit, self._wake_up, self._keep_promises)
        self._wake = asyncio.Event()
        self._stats_due = asyncio.Event()
        self._vms = {vm.name: vm for vm in vms}
        self._discovery = _discovery(config, self.topics, version)
        self.desk = Desk(self.topics, self._vms, self.outbox, self._keep_promises)
        self._keepers: dict[str, Keeper] = {}
        self._reporter = Reporter(
            self.topics, self._vms, self.outbox, self._discovery, unix_seconds
        )
        self._unix_seconds = unix_seconds
        self._backoff = Backoff(config.reconnect_delay, config.reconnect_delay_max, chance)
        self._session: Session | None = None
        self._connected_since = 0.0
        self._error = ""
        self._refused = 0
        self._leaving = self._has_left = False

    # What the daemon sees ---------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted us and our subscriptions."""
        return self.outbox.is_connected

    def event(self, vm_name: str, event: bytes) -> None:
        """Promise a QMP event of a VM to whoever listens."""
        self.outbox.event(self.topics.vm(vm_name).event, event.strip())
        self._reporter.stir(vm_name)

    def go_on(self, vm_name: str, left: Promises | None, keep: Keeper) -> None:
        """Keep a VM's promises beyond the life of this process.

        Args:
            vm_name: The VM.
            left: What a predecessor has promised.
            keep: Called with what a successor has to know, whenever that has changed.
        """
        if left is not None:
            self.desk.go_on(vm_name, left)
        self._keepers[vm_name] = keep

    def _keep_promises(self, vm_name: str) -> None:
        keep = self._keepers.get(vm_name)
        if keep is not None:
            keep(promises(self.desk.awaited(vm_name), self.outbox.results(vm_name)))

    def status(self) -> dict[str, object]:
        """Return how the connection is, ready for JSON."""
        counters = {**asdict(self.outbox.counters), **asdict(self.desk.counters)}
        return {
            "url": str(self.config.address),
            "client-id": self.config.identifier,
            "connected": self.is_connected,
            "connected-since": round(self._connected_since, 3) if self.is_connected else None,
            "failed-attempts": self._backoff.attempts,
            "last-error": self._error,
            "queued": len(self.outbox),
            "refused-by-broker": self._refused + (self._session.refused if self._session else 0),
            **{key.replace("_", "-"): value for key, value in counters.items()},
        }

    # Life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, report, listen, and connect again; never returns before it is cancelled."""
        self.outbox.retain(self.topics.availability, ONLINE)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reporter.watch(self.config.state_interval))
            group.create_task(self._tell_stats())
            group.create_task(self._stay_connected())

    async def take_leave(self) -> None:
        """Say that this host goes, and give the broker a moment to take what is left."""
        self._leaving = True
        await self.desk.close()
        self.outbox.retain(self.topics.availability, OFFLINE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self.is_connected and len(self.outbox):  # noqa: ASYNC110 - a moment, once
                    await asyncio.sleep(0.01)
        self._has_left = True

    async def _tell_stats(self) -> None:
        interval = self.config.stats_interval or None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._stats_due.wait()
            self._stats_due.clear()
            if self.is_connected and interval is not None:
                await self._reporter.tell_stats()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        # Not left to cancellation alone: Python 3.11's task groups lose one that comes just as the
        # connection does (fixed in 3.13, gh-116720).
        while not self._has_left:
            started = 0.0
            try:
                session = self._new_session()
                async with connected(session):
                    started = loop.time()
                    await self._converse(session)
            except* (aiomqtt.MqttError, BrokerError, OperatorError, OSError, ValueError) as group:
                self._note(_first(group))
            except* Exception as group:
                # A bug costs one connection, never the bridge.
                log.exception("MQTT: %s", self.config.address)
                self._note(_first(group))
            await asyncio.sleep(self._backoff.lost(loop.time() - started if started else 0.0))

    def _note(self, error: BaseException) -> None:
        """Remember why there is no connection, and say it once."""
        text = explain(error)
        if text != self._error or not self._backoff.attempts:
            log.warning("MQTT: %s: %s; trying again", self.config.address, text)
        self._error = text

    # One connection ---------------------------------------------------------------------------

    def _new_session(self) -> Session:
        """Prepare a connection; files are read again, so that what is renewed there counts."""
        session: Session | None = None

        def receive(request: Request) -> None:
            assert session is not None
            self._receive(session, request)

        session = Session(self.config, self.topics, receive)
        return session

    async def _converse(self, session: Session) -> None:
        self._session = session
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(session.lost())
                await self._subscribe(session)
                log.info("MQTT: connected to %s", self.config.address)
                self._connected_since = self._unix_seconds()
                self._error = session.refusal
                self.outbox.connected()
                self._stats_due.set()
                await self._publish(session)
        finally:
            # What could not be delivered is left to the will.
            session.is_leaving = self._leaving and not len(self.outbox)
            self._refused += session.refused
            self._session = None
            self.outbox.disconnected()

    async def _subscribe(self, session: Session) -> None:
        await session.subscribe_to(self.topics.all_commands, only_new=True)
        # Tells of VMs that an earlier daemon has left behind.
        await session.subscribe_to(self.topics.all_vm_availabilities, only_new=False)
        if self._discovery is not None:
            await session.subscribe_to(self._discovery.birth_topic, only_new=False)

    async def _publish(self, session: Session) -> None:
        """Send what is in the outbox, in order, a few at a time; never returns."""
        free = asyncio.Semaphore(MAX_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                while (item := self.outbox.take()) is None:
                    self._wake.clear()
                    await self._wake.wait()
                group.create_task(self._send(session, item, free))

    async def _send(self, session: Session, item: Outgoing, free: asyncio.Semaphore) -> None:
        try:
            await session.send(item)
        except ValueError as error:
            # It cannot be published, now or ever.
            log.warning("MQTT: %s: %s", item.topic, error)
        finally:
            free.release()
        self.outbox.done(item)
        self._error = session.refusal

    def _wake_up(self) -> None:
        self._wake.set()

    # What comes in ----------------------------------------------------------------------------

    def _receive(self, session: Session, request: Request) -> None:
        vm_name = self.topics.commanded_vm(request.topic)
        if vm_name is not None:
            self.desk.take(vm_name, request, lambda: session.acknowledge(request))
            return
        session.acknowledge(request)
        left = self.topics.available_vm(request.topic)
        if left is not None:
            if left not in self._vms and request.payload and request.is_retained:
                log.info("MQTT: %s is not served here any more", left)
                self._reporter.forget(left)
        elif request.payload == ONLINE:
            # Home Assistant has started; it has our retained messages, but no statistics.
            self._stats_due.set()


def _discovery(config: MqttConfig, topics: Topics, version: str) -> Discovery | None:
    options = config.home_assistant
    if options is None or not options.enabled:
        return None
    return Discovery(topics, options.prefix, options.minimum, version)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def bridged(bridge: Bridge) -> AsyncIterator[Bridge]:
    """Run a bridge while the context lasts, and take leave of the broker at the end."""
    running = asyncio.create_task(bridge.run())
    running.add_done_callback(_complain)
    try:
        yield bridge
    finally:
        await bridge.take_leave()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _complain(running: asyncio.Task[None]) -> None:
    """A bridge that breaks is a bug, but no reason to give up the VMs."""
    if not running.cancelled() and (error := running.exception()) is not None:
        log.error("MQTT: the bridge has broken down", exc_info=error)

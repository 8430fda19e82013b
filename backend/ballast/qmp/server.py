"""A VM's QMP socket: any number of clients up to a bound, each on its own, and events for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ballast.qmp.commands import EVENTS, Context
from ballast.qmp.connection import ClientCounters, ClientLimits, Connection
from ballast.qmp.control import BalloonControl
from ballast.qmp.listener import Listener
from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.proxy import ProxyService
from ballast.qmp.qom import BALLOON_ID
from ballast.qmp.service import LocalService, Service
from ballast.qmp.throttle import EventThrottle
from ballast.streams.client_stream import ClientStream
from ballast_protocol.qmp import RefusedError, Version, encode_error, encode_event, encode_message

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""Clients of one VM at the same time; more are told so and sent away."""

MAX_LASTING = 8
"""Events that are kept for clients that come later."""

EVENT_PERIODS_SECONDS = {
    name: event.period_seconds for name, event in EVENTS.items() if event.period_seconds
}
"""Events that are paced, as QEMU's monitor does; an inflating guest causes hundreds a second."""


class QmpServer:
    """Serves one VM's QMP socket and removes it in the end."""

    def __init__(
        self,
        vm: BalloonControl,
        path: Path,
        version: Version,
        *,
        limits: ClientLimits | None = None,
        max_clients: int = MAX_CLIENTS,
        unix_time_ns: Callable[[], int] = time.time_ns,
        monitor: QemuMonitor | None = None,
        is_balloon_qemus: bool = False,
        balloon_id: str = BALLOON_ID,
    ) -> None:
        """Make it; nothing listens before `start`.

        Args:
            vm: What commands work on.
            path: Where to listen.
            version: Who we are.
            limits: What a client may cost.
            max_clients: How many there may be.
            unix_time_ns: The wall clock, in nanoseconds since the Unix epoch.
            monitor: QEMU's own monitor, if clients are to have that too.
            is_balloon_qemus: Whether the balloon is QEMU's own.
            balloon_id: The id of the balloon's device in QEMU.
        """
        context = Context(vm, version, self.status, balloon_id)
        self._service: Service = LocalService(context)
        self._monitor = monitor
        if monitor is not None:
            self._service = ProxyService(context, monitor, is_balloon_qemus=is_balloon_qemus)
            monitor.events.append(self._qemu_event)
            monitor.changes.append(self._qemu_changed)
        self._counters = ClientCounters()
        self._path = path
        self._limits = limits or ClientLimits()
        self._max_clients = max_clients
        self._unix_time_ns = unix_time_ns
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        self._taps: list[Callable[[bytes], None]] = []
        self._throttle: EventThrottle[Callable[[], bytes]] = EventThrottle(EVENT_PERIODS_SECONDS)
        self._timer: asyncio.TimerHandle | None = None
        self._listener: Listener | None = None
        self._lasting: list[tuple[float, bytes]] = []

    async def start(self, listener: socket.socket | None = None) -> None:
        """Begin to serve.

        Args:
            listener: What listens at the path already, if anything does.

        Raises:
            OperatorError: The socket cannot be made at this path.
        """
        self._listener = Listener(self._path, self._welcome, listener)
        if self._monitor is not None:
            await self._monitor.start()

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Send an event to every client in command mode; paced kinds as `EventThrottle` says."""
        if self._listener is None:
            return
        # Of those that are paced most are overtaken, and need no encoding: a balloon that moves has
        # another size hundreds of times a second.
        event = partial(encode_event, name, data, self._unix_time_ns())
        if name in EVENTS:
            self._throttle.forget(EVENTS[name].ends)
            if EVENTS[name].lasting_seconds:
                self._remember(event(), EVENTS[name].lasting_seconds)
        if self._throttle.offer(name, event, asyncio.get_running_loop().time()):
            self._broadcast(event())
        self._set_timer()

    def _remember(self, event: bytes, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        self._lasting = [*self._recent(), (end, event)][-MAX_LASTING:]

    def _recent(self) -> list[tuple[float, bytes]]:
        now = asyncio.get_running_loop().time()
        return [each for each in self._lasting if each[0] > now]

    def _catch_up(self, connection: Connection) -> None:
        """Send a client that is ready for events what it should not have missed."""
        for _, event in self._recent():
            connection.send_event(event)

    def _broadcast(self, event: bytes) -> None:
        """Send an event of ours to every client in command mode, and to whoever listens here."""
        self._pass_on(event)
        for take in self._taps:
            take(event)

    def _pass_on(self, event: bytes) -> None:
        for connection in self._clients:
            connection.send_event(event)

    def _qemu_event(self, event: Mapping[str, object]) -> None:
        """Pass QEMU's events on; of the balloon's, others than QMP's clients want to know too."""
        data = encode_message(event)
        if event["event"] in EVENTS:
            self._broadcast(data)
        else:
            self._pass_on(data)

    def _qemu_changed(self) -> None:
        """Let clients go that were greeted by a QEMU that is gone."""
        if self._monitor is None or self._monitor.greeting is not None:
            return
        for connection in self._clients:
            if connection.is_qemus:
                connection.end()

    def status(self) -> dict[str, object]:
        """Return who is there, and what they have done."""
        return {"clients": len(self._clients), **asdict(self._counters)}

    def tap_events(self, take: Callable[[bytes], None]) -> None:
        """Have `take` called with every event that clients get, as they get it."""
        self._taps.append(take)

    async def close(self) -> None:
        """Disconnect every client, stop listening, and remove the socket file."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._listener is None:
            return
        if self._monitor is not None:
            await self._monitor.close()
        self._listener.close()
        self._listener = None
        tasks = list(self._clients.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._clients) >= self._max_clients:
            self._counters.rejected += 1
            with sock, contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(encode_error(RefusedError("too many QMP clients at once")))
            return
        stream = ClientStream(sock)
        connection = Connection(
            self._service, self._limits, self._counters, stream, ready=self._catch_up
        )
        self._counters.connections += 1
        task = asyncio.get_running_loop().create_task(connection.run())
        self._clients[connection] = task
        task.add_done_callback(lambda done: self._forget(connection, stream, done))

    def _forget(
        self, connection: Connection, stream: ClientStream, done: asyncio.Task[None]
    ) -> None:
        del self._clients[connection]
        # A task that was cancelled before its first turn has closed nothing.
        stream.close()
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("QMP client's task failed", exc_info=error)

    def _set_timer(self) -> None:
        end = self._throttle.next_end() if self._timer is None else None
        if end is not None:
            self._timer = asyncio.get_running_loop().call_at(end, self._end_period, end)

    def _end_period(self, end: float) -> None:
        self._timer = None
        for event in self._throttle.expire(end):
            self._broadcast(event())
        self._set_timer()

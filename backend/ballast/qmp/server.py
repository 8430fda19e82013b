"""A VM's QMP socket: any number of clients up to a bound, each on its own, and events for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from ballast.qmp.commands import EVENTS, Context
from ballast.qmp.connection import READ_BYTES, ClientCounters, ClientLimits, Connection
from ballast.qmp.control import BalloonControl
from ballast.qmp.throttle import EventThrottle
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp import RefusedError, Version, encode_error, encode_event

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""Clients of one VM at the same time; more are told so and sent away."""

MAX_LASTING = 8
"""Events that are kept for clients that come later."""

EVENT_PERIODS_SECONDS = {
    name: event.period_seconds for name, event in EVENTS.items() if event.period_seconds
}
"""Events that are paced, as QEMU's monitor does; an inflating guest causes hundreds a second."""


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the socket file the mode of the socket, less the umask: so it is never open
        # to others, not even between bind and a chmod.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"cannot serve QMP at {path}: {error.strerror or error}",
            hint="another process may be serving this VM, or the directory may be missing",
        ) from error
    return listener


class QmpServer:
    """Serves one VM's QMP socket and removes it in the end.

    The wall clock, in nanoseconds since the Unix epoch, can be given for tests.
    """

    def __init__(
        self,
        vm: BalloonControl,
        path: Path,
        version: Version,
        *,
        limits: ClientLimits | None = None,
        max_clients: int = MAX_CLIENTS,
        unix_time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._context = Context(vm, version, lambda: unix_time_ns() / 1e9, self.status)
        self._counters = ClientCounters()
        self._path = path
        self._limits = limits or ClientLimits()
        self._max_clients = max_clients
        self._unix_time_ns = unix_time_ns
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        self._taps: list[Callable[[bytes], None]] = []
        self._throttle = EventThrottle(EVENT_PERIODS_SECONDS)
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._lasting: list[tuple[float, bytes]] = []

    async def start(self, listener: socket.socket | None = None) -> None:
        """Begin to serve.

        Args:
            listener: What listens at the path already, if anything does.

        Raises:
            OperatorError: The socket cannot be made at this path.
        """
        listener = listener or _listen(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(
            self._welcome, sock=listener, limit=READ_BYTES
        )

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Send an event to every client in command mode; paced kinds as `EventThrottle` says."""
        if self._server is None:
            return
        event = encode_event(name, data, self._unix_time_ns())
        if name in EVENTS:
            self._throttle.forget(EVENTS[name].ends)
            self._remember(event, EVENTS[name].lasting_seconds)
        if self._throttle.offer(name, event, asyncio.get_running_loop().time()):
            self._broadcast(event)
        self._set_timer()

    def _remember(self, event: bytes, seconds: float) -> None:
        if seconds:
            end = asyncio.get_running_loop().time() + seconds
            self._lasting = [*self._recent(), (end, event)][-MAX_LASTING:]

    def _recent(self) -> list[tuple[float, bytes]]:
        now = asyncio.get_running_loop().time()
        return [each for each in self._lasting if each[0] > now]

    def _catch_up(self, connection: Connection) -> None:
        """Send a client that is ready for events what it should not have missed."""
        for _, event in self._recent():
            connection.send_event(event)

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
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._clients.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            # Not a file that somebody else has put there since.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= self._max_clients:
            self._counters.rejected += 1
            writer.write(encode_error(RefusedError("too many QMP clients at once")))
            writer.close()
            return
        connection = Connection(
            self._context, self._limits, self._counters, reader, writer, ready=self._catch_up
        )
        self._counters.connections += 1
        task = asyncio.get_running_loop().create_task(connection.run())
        self._clients[connection] = task
        task.add_done_callback(lambda done: self._forget(connection, done))

    def _forget(self, connection: Connection, done: asyncio.Task[None]) -> None:
        del self._clients[connection]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("QMP client's task failed", exc_info=error)

    def _broadcast(self, event: bytes) -> None:
        for connection in self._clients:
            connection.send_event(event)
        for take in self._taps:
            take(event)

    def _set_timer(self) -> None:
        end = self._throttle.next_end()
        if self._timer is None and end is not None:
            self._timer = asyncio.get_running_loop().call_at(end, self._end_period, end)

    def _end_period(self, end: float) -> None:
        self._timer = None
        for event in self._throttle.expire(end):
            self._broadcast(event)
        self._set_timer()

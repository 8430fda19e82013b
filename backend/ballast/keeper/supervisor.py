"""The keeper as its workers' parent: starts, replaces and upgrades them.

Beside the worker that serves there is a *spare*: a process that has loaded everything and waits.
When the worker dies the spare is handed all that is held, a fraction of a second later.

For an upgrade a *successor* is started, which runs the code that is installed by then. It looks at
what it would take over; if it cannot, the worker just goes on. Then the worker leaves, and the
successor takes over. The old spare, which still has the old code, waits until the successor serves:
it is the way back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ballast.keeper.backoff import BackOff
from ballast.keeper.channel import pair
from ballast.keeper.keeper import Keeper
from ballast.keeper.logs import say
from ballast.keeper.loop import Timer
from ballast.keeper.messages import Message, encode
from ballast.keeper.notify import notify_service_manager
from ballast.keeper.worker import Worker

KEEPER_FD_VARIABLE = "BALLAST_KEEPER_FD"
"""Tells a worker where its channel is."""

READY_SECONDS = 60.0
"""How long a worker may take until it serves, and a successor until it can."""

LEAVE_SECONDS = 5.0
"""How long a worker may take to leave for its successor; killing it is safe, only less polite."""

SPARE_PAUSE_SECONDS = 0.1
"""Until a spare is loaded: the new worker has work to catch up with."""

SHORTEST_RETRY_SECONDS = 0.1
"""Until a process is tried again that could not even be started."""

HEARTBEAT_SECONDS = 5.0

SILENT_BEATS = 6
"""After so many heartbeats without a sign of life a worker hangs, and is replaced."""

SPARE_RETRY_SECONDS = 10.0
"""Until a spare that could not be loaded is tried again."""


@dataclass
class Counts:
    """What workers are told of the past.

    Attributes:
        restarts: How often a worker was replaced because it was gone.
        upgrades: How often one was replaced on purpose.
        attempts: How often an upgrade was asked for.
        upgrade_error: Why the last upgrade failed; empty if it did not.
    """

    restarts: int = 0
    upgrades: int = 0
    attempts: int = 0
    upgrade_error: str = ""

    def recall(self, message: Message) -> None:
        """Go on from what a worker remembers of an earlier keeper."""
        for name in ("restarts", "upgrades", "attempts"):
            text = message.get(name.upper(), "")
            setattr(self, name, int(text) if text.isdigit() else 0)


class Supervisor:
    """Keeps a worker running; see the module."""

    def __init__(self, keeper: Keeper, command: Sequence[str]) -> None:
        """Start nothing yet.

        Args:
            keeper: Who holds the descriptors.
            command: What starts a worker.
        """
        self._keeper = keeper
        self._loop = keeper.loop
        self._command = list(command)
        self._counts = Counts()
        self._back_off = BackOff()
        self._spare: Worker | None = None
        self._successor: Worker | None = None
        self._deadline: Timer | None = None
        self._pending: Timer | None = None
        self._serving_since: float | None = None
        self._was_ever_ready = False
        self._is_upgrading = False
        self._is_stopping = False
        self._silent_beats = 0

    # Starting --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the first worker, and follow signals."""
        self.follow_signals()
        self._replace("start", "")
        self._loop.later(HEARTBEAT_SECONDS, self._beat)

    def adopt(self, channel: int) -> None:
        """Begin with a worker that serves already, and has lost its keeper."""
        self.follow_signals()
        sock = socket.socket(fileno=channel)
        worker = Worker(self._loop, sock, heard=self._heard, ended=self._ended, may_kill=True)
        self._keeper.active = worker
        self._was_ever_ready = True
        self._loop.later(HEARTBEAT_SECONDS, self._beat)

    def follow_signals(self) -> None:
        """SIGTERM and SIGINT end everything, SIGHUP upgrades."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self.stop)
        self._loop.on_signal(signal.SIGHUP, self.upgrade)

    def _launch(self) -> Worker | None:
        """Start a process, which waits for what it is told; None if that is impossible now."""
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = pair()
                undo.callback(ours.close)
                with theirs:
                    process = self._start(theirs.fileno())
                worker = Worker(
                    self._loop, ours, heard=self._heard, ended=self._ended, process=process
                )
            except OSError as error:
                # Without its channel, a process that did start ends by itself.
                say(f"a worker cannot be started: {error}")
                return None
            undo.pop_all()
        return worker

    def _start(self, channel: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, KEEPER_FD_VARIABLE: str(channel)}
        # What it has to say is for us.
        environment.pop("NOTIFY_SOCKET", None)
        return subprocess.Popen(self._command, env=environment, pass_fds=[channel], process_group=0)

    def _have_spare(self) -> None:
        active = self._keeper.active
        if active is None or not active.is_ready:
            return  # it needs the processor more, and asks for a spare when it serves
        if self._spare is None and not self._is_stopping:
            self._spare = self._launch()
            if self._spare is None:
                self._loop.later(SPARE_RETRY_SECONDS, self._have_spare)

    def _replace(self, kind: str, reason: str, since_ns: int | None = None) -> None:
        """Have the spare, or else a new process, take over."""
        self._pending = None
        if self._is_stopping or self._keeper.active is not None:
            return
        worker, self._spare = self._spare or self._launch(), None
        if worker is None:
            retry = max(self._back_off.after(0.0), SHORTEST_RETRY_SECONDS)
            self._replace_later(retry, kind, reason, since_ns)
            return
        self._hand_over(worker, self._go(kind, reason, since_ns))

    def _replace_later(self, delay: float, kind: str, reason: str, since_ns: int | None) -> None:
        self._pending = self._loop.later(delay, partial(self._replace, kind, reason, since_ns))

    def _beat(self) -> None:
        """See now and then that somebody serves: a bug of ours must not leave VMs alone."""
        self._loop.later(HEARTBEAT_SECONDS, self._beat)
        if self._keeper.active is None and self._pending is None:
            self._replace("restart", "nobody served")
        self._look_for_life()

    def _look_for_life(self) -> None:
        """End a worker that hangs. Our own beats are counted: we may have stood still as well."""
        worker = self._keeper.active
        if self._keeper.sees_life() or worker is None or not worker.is_ready:
            self._silent_beats = 0
            return
        self._silent_beats += 1
        if self._silent_beats >= SILENT_BEATS:
            self._silent_beats = 0
            worker.status = "it hung"
            worker.kill()

    def _hand_over(self, worker: Worker, go: bytes) -> None:
        self._serving_since = None
        self._keeper.hand_over(worker, go)
        self._set_deadline(READY_SECONDS, worker, "it did not serve in time")

    def _go(self, kind: str, reason: str, since_ns: int | None) -> bytes:
        counts = self._counts
        return encode(
            GO=1,
            KIND=kind,
            REASON=reason,
            SINCE="" if since_ns is None else since_ns,
            RESTARTS=counts.restarts,
            UPGRADES=counts.upgrades,
            ATTEMPTS=counts.attempts,
            UPGRADE_ERROR=counts.upgrade_error,
        )

    def _set_deadline(self, seconds: float, worker: Worker, complaint: str) -> None:
        """Kill a worker after a time, unless something else is waited for by then."""

        def expire() -> None:
            worker.status = complaint
            worker.kill()

        self._clear_deadline()
        self._deadline = self._loop.later(seconds, expire)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # What workers say ------------------------------------------------------------------------

    def _heard(self, worker: Worker, message: Message, fds: list[int]) -> None:
        if self._keeper.heard(worker, message, fds):
            return
        if "LOADED" in message:
            worker.is_loaded = True
        elif "READY" in message and worker is self._keeper.active:
            self._is_serving(worker)
        elif "STANDBY" in message and worker is self._successor:
            self._let_leave()
        elif "RELOAD" in message and worker is self._keeper.active:
            self.upgrade()
        elif "ATTACH" in message:
            self._counts.recall(message)

    def _is_serving(self, worker: Worker) -> None:
        self._clear_deadline()
        worker.is_ready = True
        self._serving_since = time.monotonic()
        if not self._was_ever_ready:
            self._was_ever_ready = True
            notify_service_manager("READY=1")
        if self._is_upgrading:
            self._is_upgrading = False
            self._dismiss_spare()
            say(f"upgraded: process {worker.pid} serves")
        self._loop.later(SPARE_PAUSE_SECONDS, self._have_spare)

    # How workers end -------------------------------------------------------------------------

    def _ended(self, worker: Worker, how: str) -> None:
        if worker is self._keeper.active:
            self._lost_worker(worker, how)
        elif worker is self._successor:
            self._successor = None
            self._clear_deadline()
            self._upgrade_failed(f"the new version {how} before it could take over")
        elif worker is self._spare:
            self._spare = None
            say(f"the spare worker {how}")
            self._loop.later(SPARE_RETRY_SECONDS, self._have_spare)

    def _lost_worker(self, worker: Worker, how: str) -> None:
        since_ns = time.monotonic_ns()
        self._clear_deadline()
        self._keeper.lost()
        if self._is_stopping:
            self._loop.end(worker.exit_status or 0)
        elif self._successor is not None:
            self._succeed(since_ns)
        elif not self._was_ever_ready and worker.exit_status:
            # It has said itself what is wrong: with its command line, most likely.
            self._dismiss_spare()
            self._loop.end(worker.exit_status)
        else:
            self._restart(worker, how, since_ns)

    def _restart(self, worker: Worker, how: str, since_ns: int) -> None:
        kind = "restart"
        self._counts.restarts += 1
        if self._is_upgrading:
            self._is_upgrading, kind = False, "upgrade-failed"
            self._counts.upgrade_error = f"the new version {how} when it took over"
        served = time.monotonic() - self._serving_since if self._serving_since else 0.0
        delay = self._back_off.after(served)
        pause = f" in {delay:g} s" if delay else ""
        say(f"worker {worker.pid} {how}; another takes over{pause}")
        if delay:
            self._replace_later(delay, kind, how, since_ns)
        else:
            self._replace(kind, how, since_ns)

    # Upgrading -------------------------------------------------------------------------------

    def upgrade(self) -> None:
        """Replace the worker by one that runs the code that is installed now."""
        if self._is_stopping or self._is_upgrading or self._successor is not None:
            return  # whoever asked gets what is under way
        self._counts.attempts += 1
        active = self._keeper.active
        if active is None or not active.is_ready:
            self._upgrade_failed("no worker serves at the moment")
            return
        self._successor = self._launch()
        if self._successor is None:
            self._upgrade_failed("no process can be started")
            return
        say(f"upgrade: process {self._successor.pid} is to take over")
        self._keeper.show(self._successor)
        self._successor.send(encode(CHECK=1))
        self._set_deadline(READY_SECONDS, self._successor, "it was not ready in time")

    def _let_leave(self) -> None:
        """The successor can take over: have the worker leave; it leaves everything as it is."""
        worker = self._keeper.active
        if worker is not None:
            worker.send(encode(LEAVE=1))
            self._set_deadline(LEAVE_SECONDS, worker, "it did not leave in time")

    def _succeed(self, since_ns: int) -> None:
        """The worker is gone, in mid-upgrade: whether it left or died, its successor is next."""
        worker, self._successor = self._successor, None
        assert worker is not None
        self._is_upgrading = True
        self._counts.upgrades += 1
        self._counts.upgrade_error = ""
        self._hand_over(worker, self._go("upgrade", "upgrade", since_ns))

    def _upgrade_failed(self, why: str) -> None:
        say(f"the upgrade has failed: {why}")
        self._counts.upgrade_error = why
        if self._keeper.active is not None:
            self._keeper.active.send(encode(FAILED=why, ATTEMPTS=self._counts.attempts))

    # Ending ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have the worker end for good, and end; asked twice, do not wait for it."""
        worker = self._keeper.active
        if worker is None or self._is_stopping:
            if worker is not None:
                worker.kill()
            if vms := self._keeper.connected_vms():
                say(f"ending while QEMU is connected: {', '.join(vms)}")
            self._loop.end(1 if self._is_stopping else 0)
            return
        self._is_stopping = True
        self._dismiss_spare()
        if self._successor is not None:
            self._successor.kill()
            self._successor = None
        worker.send(encode(STOP=1))

    def _dismiss_spare(self) -> None:
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

"""The keeper as a service of its own, beside QEMU: its workers are not children of its."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from pathlib import Path

from ballast.keeper.keeper import Keeper
from ballast.keeper.logs import say
from ballast.keeper.loop import READ
from ballast.keeper.messages import Message, encode
from ballast.keeper.notify import notify_service_manager
from ballast.keeper.worker import Worker
from ballast_protocol.errors import OperatorError

MAX_STRANGERS = 8
"""Connections that have not said what they want; more have to wait."""

STRANGER_SECONDS = 10.0
"""How long one may take to say it."""


class Service:
    """Lets one worker at a time have what is held."""

    def __init__(self, keeper: Keeper, path: Path) -> None:
        """Listen at a path.

        Raises:
            OperatorError: It cannot be listened at.
        """
        self._keeper = keeper
        self._loop = keeper.loop
        self._path = path
        self._restarts = 0
        self._strangers: set[Worker] = set()
        self._sock = _listen(path)
        self._inode = path.stat().st_ino

    def start(self) -> None:
        """Begin to accept workers, and follow signals."""
        self._watch()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self.stop)
        self._loop.on_signal(signal.SIGHUP, lambda: say(_NO_UPGRADE))
        say(f"waiting for a worker at {self._path}")
        notify_service_manager("READY=1")

    def _watch(self) -> None:
        if len(self._strangers) < MAX_STRANGERS:
            self._loop.watch(self._sock.fileno(), READ, lambda _: self._accept())
        else:
            self._loop.forget(self._sock.fileno())

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        stranger = Worker(self._loop, sock, heard=self._heard, ended=self._ended)
        self._strangers.add(stranger)
        self._watch()
        self._loop.later(STRANGER_SECONDS, lambda: self._lose_patience(stranger))

    def _lose_patience(self, stranger: Worker) -> None:
        if stranger in self._strangers:
            stranger.close()
            self._is_known(stranger)

    def _is_known(self, worker: Worker) -> None:
        self._strangers.discard(worker)
        self._watch()

    def _heard(self, worker: Worker, message: Message, fds: list[int]) -> None:
        if self._keeper.heard(worker, message, fds):
            return
        if "ATTACH" in message and worker in self._strangers:
            self._is_known(worker)
            self._attach(worker, serves_already=message["ATTACH"] == "serving")
        elif "RELOAD" in message:
            worker.send(encode(FAILED=_NO_UPGRADE))

    def _attach(self, worker: Worker, *, serves_already: bool) -> None:
        active, held = self._keeper.active, len(self._keeper.vault)
        if active is not None:
            self._refuse(worker, f"worker {active.pid} is at work")
        elif serves_already and held:
            self._refuse(worker, f"{held} descriptors of another worker are held here")
        else:
            self._restarts += bool(held)
            say(f"worker {worker.pid} has come, {held} descriptors are handed over")
            go = encode(GO=1, KIND="restart" if held else "start", RESTARTS=self._restarts)
            self._keeper.hand_over(worker, go)

    def _refuse(self, worker: Worker, why: str) -> None:
        say(f"worker {worker.pid} was refused: {why}")
        worker.send(encode(REFUSED=why))
        worker.close()

    def _ended(self, worker: Worker, how: str) -> None:
        if worker is self._keeper.active:
            held = len(self._keeper.vault)
            say(f"worker {worker.pid} {how}; {held} descriptors wait for the next")
            self._keeper.lost()
        else:
            self._is_known(worker)

    def stop(self) -> None:
        """End; a worker that serves goes on, without anything to catch it."""
        if vms := self._keeper.connected_vms():
            say(f"ending while QEMU is connected: {', '.join(vms)}")
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._loop.end(0)


_NO_UPGRADE = "this keeper starts no workers: end the worker, and start the new version"


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at a path, taking the place of a dead one."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode) and _is_dead(path):
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OperatorError(f"cannot use {path}: {error.strerror}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        sock.listen()
    except OSError as error:
        sock.close()
        raise OperatorError(
            f"cannot listen at {path}: {error.strerror or error}",
            hint="Another keeper may be there, or the folder may be missing.",
        ) from error
    return sock


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

"""The balloon behind a vhost-user socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ballast.balloon.device import BalloonDevice
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.transport.server import DeviceServer
from ballast.transport.vhost_user.notifier import NotifierCounts
from ballast.transport.vhost_user.session import Session


class VhostUserServer(DeviceServer):
    """Serves a device to one vhost-user front-end at a time."""

    protocol = "vhost-user"

    def __init__(
        self,
        device: BalloonDevice,
        *,
        path: Path | None = None,
        fd: int | None = None,
        changed: Callable[[], None] = lambda: None,
        store: VmStore | None = None,
        state: StateFile | None = None,
    ) -> None:
        """Serve as `DeviceServer` does.

        Args:
            device: What is served; a session that is taken over restores it.
            path: Where to listen.
            fd: A listening or a connected socket.
            changed: Called when a VMM has come or gone.
            store: Where descriptors are kept for a successor.
            state: Where all else is kept for it; None if there will be none.
        """
        super().__init__(path=path, fd=fd, changed=changed, store=store)
        self._device = device
        self._state = state
        self._counts = NotifierCounts()

    def _open(self, sock: socket.socket, ended: Callable[[str], None]) -> Session:
        return Session(
            sock,
            self._device,
            ended=ended,
            counts=self._counts,
            store=self._store,
            state=self._state,
        )

    def status(self) -> dict[str, object]:
        """Return what operators may want to know, ready for JSON."""
        return {**super().status(), "config-notifications": asdict(self._counts)}

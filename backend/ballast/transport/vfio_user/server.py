"""The balloon behind a vfio-user socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from ballast.balloon.device import BalloonDevice
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.transport.server import DeviceServer
from ballast.transport.vfio_user.refusal import Refusal
from ballast.transport.vfio_user.session import Session
from ballast.virtio_pci.layout import Variant

MAX_REFUSALS = 8
"""Clients that are turned away at the same time; more of them are cut off."""


class VfioUserServer(DeviceServer):
    """Serves a device to one vfio-user client at a time, as a PCI function of the given variant."""

    protocol = "vfio-user"

    def __init__(
        self,
        device: BalloonDevice,
        *,
        path: Path | None = None,
        fd: int | None = None,
        variant: Variant = Variant.MSIX_MAPPED,
        changed: Callable[[], None] = lambda: None,
        store: VmStore | None = None,
        state: StateFile | None = None,
    ) -> None:
        """Serve as `DeviceServer` does.

        Args:
            device: What is served, as a predecessor left it if there was one.
            path: Where to listen.
            fd: A listening or a connected socket.
            variant: How interrupts and config reads reach the guest.
            changed: Called when a VMM has come or gone.
            store: Where descriptors are kept for a successor.
            state: Where all else is kept for it; None if there will be none.
        """
        super().__init__(path=path, fd=fd, changed=changed, store=store)
        self._device = device
        self._variant = variant
        self._state = state
        self._refusals: set[Refusal] = set()

    def _open(self, sock: socket.socket, ended: Callable[[str], None]) -> Session:
        return Session(
            sock,
            self._device,
            variant=self._variant,
            ended=ended,
            store=self._store,
            state=self._state,
        )

    def _refuse(self, sock: socket.socket) -> None:
        if len(self._refusals) < MAX_REFUSALS:
            self._refusals.add(Refusal(sock, self._refusals.discard))
        else:
            sock.close()

    async def close(self) -> None:
        """Let go of the VMM, its memory and the socket."""
        for each in tuple(self._refusals):
            each.close()
        await super().close()

    def status(self) -> dict[str, object]:
        """Return what operators may want to know, ready for JSON."""
        return {**super().status(), "variant": self._variant.value}

"""What every VM is to those who serve many: one with a balloon of ours, and one with QEMU's own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from ballast.daemon.paths import VmPaths
from ballast.daemon.wishes import Wishes
from ballast.qmp.control import BalloonControl


class ServedVm(BalloonControl, Protocol):
    """A VM that is served under its name."""

    @property
    def paths(self) -> VmPaths:
        """Its sockets."""

    @property
    def vmm_pid(self) -> int | None:
        """The process that loses its balloon when we end; None if there is none."""

    async def start(self) -> None:
        """Take the name and listen on all sockets.

        Raises:
            OperatorError: The name is taken or a socket cannot be used.
        """

    async def close(self) -> None:
        """Stop listening, and give the name up."""

    def name_holder(self, pid: int) -> None:
        """Write down which process is to be stopped to free the VM's name."""

    def offer(self, sock: socket.socket) -> None:
        """Serve a connection that was accepted by whoever keeps our descriptors."""

    def join_fleet(
        self, take_event: Callable[[bytes], None], status: Callable[[], Mapping[str, object]]
    ) -> Wishes:
        """Have QMP events told over MQTT as well, and show how the connection is.

        Returns:
            Where the bridge's promises are kept.
        """

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Tell operators of an event."""

"""Is the guest's memory really shared with us?

QEMU passes a file for memory with `share=off` too; it has then private copies of the pages, and
ours stay empty. So the first ring that is used is read through QEMU as well, and compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.vfio_user.queues import Queues
from ballast_protocol.errors import GuestError, PeerError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.connection import ServerConnection

log = logging.getLogger(__name__)

_AVAIL_HEAD_BYTES = 4
"""Flags and index of an available ring."""


@dataclass(frozen=True, slots=True)
class SavedProbe:
    """Where a probe is.

    Attributes:
        index: The queue whose ring was asked for, if the answer is of interest.
        is_waiting: An answer is still to come.
        is_done: This driver's rings have been looked at.
        is_private: They have not been found to be shared.
    """

    index: int | None = None
    is_waiting: bool = False
    is_done: bool = False
    is_private: bool = False


class SharingProbe:
    """Asks once for each driver.

    Attributes:
        state: Where it is.
    """

    def __init__(
        self,
        connection: ServerConnection,
        queues: Queues,
        send: Callable[[bytes], None],
        state: SavedProbe,
    ) -> None:
        """Begin, or go on.

        Args:
            connection: Makes the command.
            queues: Knows where rings are, and what ours look like.
            send: Sends the command.
            state: Where a predecessor was.
        """
        self._connection = connection
        self._queues = queues
        self._send = send
        self.state = state

    @property
    def is_private(self) -> bool:
        """Whether the guest's memory has been found to be private to QEMU."""
        return self.state.is_private

    def begin(self) -> None:
        """Another driver starts, whose rings are to be looked at."""
        self.state = replace(self.state, is_done=False, is_private=False)

    def forget(self) -> None:
        """The driver is gone, and with it what its ring was."""
        self.state = replace(self.state, index=None)

    def used(self, index: int) -> bool:
        """Ask for a ring that the driver says to have used; return whether that was to be done."""
        if self.state.is_done or self.state.is_waiting:
            return False
        self.state = replace(self.state, is_done=True)
        address = self._queues.driver_ring(index)
        if address is not None:
            self._ask(index, address)
        return True

    def _ask(self, index: int, address: int) -> None:
        try:
            command = self._connection.dma_read(address, _AVAIL_HEAD_BYTES)
        except (PeerError, GuestError) as error:
            log.debug("the ring cannot be read through the client: %s", error)
            return
        self.state = replace(self.state, index=index, is_waiting=True)
        self._send(command.data)

    def answered(self, completion: events.Completion) -> None:
        """Take the answer, and compare it with what we see."""
        index = self.state.index
        self.state = replace(self.state, index=None, is_waiting=False)
        if index is None or not isinstance(completion, events.DmaReadDone):
            return
        if self._queues.looks_empty(index, int.from_bytes(completion.data[2:4], "little")):
            self.state = replace(self.state, is_private=True)
            log.error("%s", NO_SHARED_MEMORY)

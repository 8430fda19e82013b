"""One ring as vhost-user describes it: addresses and positions, eventfds, started and enabled."""

from __future__ import annotations

from dataclasses import dataclass

from ballast.memory.map import MemoryMap, Piece
from ballast.queue.split import SplitQueue
from ballast.queue.state import QueueState
from ballast.streams.eventfd import CallFd, KickFd


@dataclass(frozen=True)
class RingMark:
    """What a ring looked like when it was stopped, by which a resumed driver is recognised.

    A front-end stops rings in the same way for a pause and for a guest reset. Only the next start
    tells them apart: after a pause the same rings go on at the same index, while a driver that
    begins anew starts at 0, mostly with rings elsewhere.
    """

    base: int
    addresses: tuple[int, int, int]
    size: int


def _resolve(memory: MemoryMap, address: int, length: int) -> Piece:
    return memory.user_piece(address, length)


class Vring:
    """One virtqueue of a vhost-user session; owns its eventfds and its hold on guest memory.

    Attributes:
        index: Its number.
        state: Addresses and positions.
        queue: The queue over guest memory.
        is_enabled: SET_VRING_ENABLE said so, or no such message is needed.
        is_started: A kick descriptor is there and GET_VRING_BASE has not stopped the ring.
        is_broken: The driver has made it unusable; nothing is read from it until it starts anew.
        mark: How it looked when it was last stopped.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = QueueState()
        self.queue = SplitQueue(self.state, _resolve)
        self.kick: KickFd | None = None
        self.call: CallFd | None = None
        self.error: CallFd | None = None
        self.is_enabled = False
        self.is_started = False
        self.is_broken = False
        self.mark: RingMark | None = None

    @property
    def is_active(self) -> bool:
        """Whether buffers may be taken from the ring now."""
        return self.is_started and self.is_enabled and not self.is_broken and self.queue.is_attached

    def looks(self) -> RingMark:
        """Return how the ring looks now."""
        return RingMark(self.state.next_avail, self.state.addresses, self.state.size)

    def set_kick(self, kick: KickFd | None) -> None:
        """Use another kick descriptor; from now on the ring is started. Nothing stops it here."""
        if self.kick is not None:
            self.kick.close()
        self.kick = kick
        self.is_started = True

    def set_call(self, call: CallFd | None) -> None:
        """Use another descriptor to interrupt the driver."""
        if self.call is not None:
            self.call.close()
        self.call = call

    def set_error(self, error: CallFd | None) -> None:
        """Use another descriptor to report that the ring is broken."""
        if self.error is not None:
            self.error.close()
        self.error = error

    def interrupt(self) -> None:
        """Notify the driver of used buffers."""
        if self.call is not None:
            self.call.signal()

    def break_down(self) -> None:
        """Take nothing more from the ring, and tell the front-end."""
        self.is_broken = True
        if self.error is not None:
            self.error.signal()

    def stop(self) -> None:
        """Stop the ring: no guest memory is touched and no kick heard until it starts again."""
        if self.kick is not None:
            self.kick.close()
            self.kick = None
        self.queue.detach()
        self.is_started = False

    def close(self) -> None:
        """Let go of everything."""
        self.stop()
        self.set_call(None)
        self.set_error(None)

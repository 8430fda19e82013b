"""One ring as vhost-user describes it: addresses and positions, eventfds, started and enabled."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass

from ballast.memory.map import MemoryMap, Piece
from ballast.queue.split import SplitQueue
from ballast.queue.state import QueueState
from ballast.streams.eventfd import CallFd, KickFd
from ballast.transport.kept import KeptFds
from ballast.transport.vhost_user.saved import SavedMark, SavedVring

FIRST_CELL = 16
"""Where in a VM's state file the positions of its rings are; those before are the device's."""

_INDEX_BITS = 16


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

    def __init__(self, index: int, kept: KeptFds, cells: MutableSequence[int] | memoryview) -> None:
        """Make a ring of which nothing is known.

        Args:
            index: Its number.
            kept: Where its descriptors are kept for a successor.
            cells: Where its position is.
        """
        self.index = index
        self.state = QueueState()
        self.queue = SplitQueue(self.state, _resolve, self._publishing)
        self._kept = kept
        self._cells = cells
        self._lead = 0
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

    def begin(self) -> None:
        """Take nothing for done but what the used ring says, now that the driver begins."""
        self.queue.adopt_used_index()
        self._lead = (self.state.next_avail - self.state.next_used) & 0xFFFF

    def go_on(self) -> None:
        """As `begin`, in place of a predecessor: what it took and did not return is taken again."""
        published = self._cells[FIRST_CELL + self.index]
        self.queue.recover_used_index(published & 0xFFFF, published >> _INDEX_BITS)
        self.state.next_avail = (self.state.next_used + self._lead) & 0xFFFF

    def _publishing(self, old: int, new: int) -> None:
        """Note where the used index goes: one store, which a kill does not split."""
        self._cells[FIRST_CELL + self.index] = old | new << _INDEX_BITS

    def _keep(self, what: str, fd: int | None) -> None:
        name = f"{what}.{self.index}"
        if fd is None:
            self._kept.drop(name)
        else:
            self._kept.put(name, fd)

    def set_kick(self, kick: KickFd | None) -> None:
        """Use another kick descriptor; from now on the ring is started. Nothing stops it here."""
        self._set_kick(kick)
        self.is_started = True

    def _set_kick(self, kick: KickFd | None) -> None:
        self._keep("kick", kick.fd if kick else None)
        if self.kick is not None:
            self.kick.close()
        self.kick = kick

    def set_call(self, call: CallFd | None) -> None:
        """Use another descriptor to interrupt the driver."""
        self._keep("call", call.fd if call else None)
        if self.call is not None:
            self.call.close()
        self.call = call

    def set_error(self, error: CallFd | None) -> None:
        """Use another descriptor to report that the ring is broken."""
        self._keep("err", error.fd if error else None)
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
        self._set_kick(None)
        self.queue.detach()
        self.is_started = False

    def close(self) -> None:
        """Let go of everything."""
        self.stop()
        self.set_call(None)
        self.set_error(None)

    # A successor -----------------------------------------------------------------------------

    def save(self) -> SavedVring:
        """Return what a successor needs, beside the descriptors and the position."""
        state, mark = self.state, self.mark
        fds = {"kick": self.kick, "call": self.call, "err": self.error}
        return SavedVring(
            size=state.size,
            addresses=state.addresses,
            next_avail=state.next_avail,
            lead=self._lead,
            is_enabled=self.is_enabled,
            is_started=self.is_started,
            is_broken=self.is_broken,
            mark=SavedMark(mark.base, mark.addresses, mark.size) if mark else None,
            fds=tuple(name for name, fd in fds.items() if fd is not None),
        )

    def restore(self, saved: SavedVring, kicked: Callable[[], None]) -> None:
        """Be what a predecessor's was; `go_on` when the memory is there.

        Raises:
            StateError: A descriptor is missing.
        """
        state, mark = self.state, saved.mark
        state.size, state.next_avail, self._lead = saved.size, saved.next_avail, saved.lead
        state.desc_address, state.avail_address, state.used_address = saved.addresses
        self.is_enabled, self.is_started = saved.is_enabled, saved.is_started
        self.is_broken = saved.is_broken
        self.mark = RingMark(mark.base, mark.addresses, mark.size) if mark else None
        for what in saved.fds:
            fd = self._kept.take(f"{what}.{self.index}")
            if what == "kick":
                self.kick = KickFd(fd, kicked)
            elif what == "call":
                self.call = CallFd(fd)
            else:
                self.error = CallFd(fd)

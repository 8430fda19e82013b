"""All rings of one vhost-user session: how they are described, started, served and stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, MutableSequence
from functools import partial

from ballast.balloon.device import BalloonDevice
from ballast.memory.map import MemoryMap
from ballast.streams.eventfd import CallFd, KickFd
from ballast.streams.fds import FdSet
from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.kept import KeptFds
from ballast.transport.slices import SliceServer
from ballast.transport.vhost_user.saved import SavedVring
from ballast.transport.vhost_user.vring import Vring
from ballast_protocol.errors import GuestError
from ballast_protocol.vhost_user import events
from ballast_protocol.virtio.balloon import BalloonQueue
from ballast_protocol.virtio.features import VirtioFeature

log = logging.getLogger(__name__)

QUEUE_COUNT = len(BalloonQueue)


class Rings:
    """The virtqueues between one front-end and the device; implements `slices.RingOwner`.

    Attributes:
        problem: What keeps the balloon from working, for the operator; empty if nothing does.
    """

    def __init__(
        self,
        device: BalloonDevice,
        kept: KeptFds,
        cells: MutableSequence[int] | memoryview,
        changed: Callable[[], None],
    ) -> None:
        """Begin with rings of which nothing is known.

        Args:
            device: What they are of.
            kept: Where their descriptors are kept for a successor.
            cells: Where their positions are.
            changed: Called when something of `save` has changed, before a driver can see it.
        """
        self.problem = ""
        self._device = device
        self._changed = changed
        self._memory = MemoryMap()
        self._features = 0
        self._due: list[int] | None = None
        self._vrings = [Vring(index, kept, cells) for index in range(QUEUE_COUNT)]
        self._slices = SliceServer(device, self)

    # Description -----------------------------------------------------------------------------

    def accept_features(self, accepted: events.SetFeatures) -> None:
        """Follow what the driver accepted; without bit 30 all rings are enabled at once."""
        self._features = accepted.virtio_features
        for vring in self._vrings:
            vring.state.event_idx = bool(accepted.features & VirtioFeature.EVENT_IDX)
            vring.state.indirect = bool(accepted.features & VirtioFeature.INDIRECT_DESC)
            if accepted.enables_all_rings:
                vring.is_enabled = True

    def let_go(self) -> None:
        """Hold no guest memory, so that regions can be closed."""
        for vring in self._vrings:
            vring.queue.detach()

    def use(self, memory: MemoryMap) -> None:
        """Go on in another memory map."""
        self._memory = memory
        self._device.set_memory(memory)
        if self._device.is_running:
            for vring in self._vrings:
                if vring.is_started and not vring.is_broken:
                    self._attach(vring)

    def request(self, event: events.Event, fds: FdSet) -> bool:
        """Serve a request about one ring; return whether it was possible."""
        match event:
            case events.SetVringKick(index, has_fd):
                vring = self._vrings[index]
                vring.set_kick(self._kick(vring, fds) if has_fd else None)
                # The descriptor that was in use before may have gone with a kick in it.
                self._service(vring)
            case events.SetVringCall(index, has_fd):
                self._vrings[index].set_call(CallFd(fds.steal()) if has_fd else None)
            case events.SetVringErr(index, has_fd):
                self._vrings[index].set_error(CallFd(fds.steal()) if has_fd else None)
            case events.SetVringEnable(index, enabled):
                self._enable(self._vrings[index], enabled)
            case events.SetVringNum(index, num):
                return self._place(self._vrings[index], "size", num)
            case events.SetVringBase(index, base):
                return self._place(self._vrings[index], "next_avail", base & 0xFFFF)
            case events.SetVringAddr(index) as at:
                vring = self._vrings[index]
                return (
                    self._place(vring, "desc_address", at.descriptor)
                    and self._place(vring, "avail_address", at.available)
                    and self._place(vring, "used_address", at.used)
                )
            case _:
                return False
        return True

    def _kick(self, vring: Vring, fds: FdSet) -> KickFd:
        kick = KickFd(fds.peek(), lambda: self._kicked(vring))
        fds.steal()
        return kick

    def _place(self, vring: Vring, field: str, value: int) -> bool:
        """Set one property of a ring; on a running ring only what it already is may be repeated.

        QEMU repeats SET_VRING_ADDR on running rings when it switches its dirty log.
        """
        if vring.queue.is_attached:
            return bool(getattr(vring.state, field) == value) or field == "next_avail"
        setattr(vring.state, field, value)
        return True

    def _enable(self, vring: Vring, enabled: bool) -> None:
        vring.is_enabled = enabled
        if enabled and vring.is_started:
            self._run(vring)

    # Life cycle ------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a driver is at work and none of its rings is disabled."""
        started = [vring for vring in self._vrings if vring.is_started]
        return self._device.is_running and all(vring.is_enabled for vring in started)

    def _begin(self) -> None:
        """Start the device when its first ring may run: all rings have been described by then."""
        if self._device.is_running:
            return
        features = self._features
        started = [vring for vring in self._vrings if vring.is_started]
        marked = [vring for vring in self._vrings if vring.mark is not None]
        resumes = started == marked and all(vring.looks() == vring.mark for vring in started)
        fresh = not (resumes and features == self._device.driver_features)
        log.info("the driver %s, features %#x", "starts" if fresh else "goes on", features)
        self.problem = ""
        for vring in self._vrings:
            vring.mark, vring.is_broken = None, False
        self._device.start(features, fresh=fresh)
        for vring in started:
            if self._attach(vring):
                vring.begin()

    def _attach(self, vring: Vring) -> bool:
        """Find a ring in guest memory; a ring that is not there breaks down and is reported."""
        try:
            vring.queue.attach(self._memory)
        except GuestError as error:
            vring.break_down()
            self._device.metrics.broken_queues += 1
            reason = f"queue {vring.index} cannot be used: {error}"
            self.report_problem(reason if self._memory.regions else NO_SHARED_MEMORY)
            return False
        return True

    def report_problem(self, text: str) -> None:
        """Tell the operator what is wrong, loudly and once."""
        if self.problem != text:
            self.problem = text
            log.error("%s", text)

    # Service ---------------------------------------------------------------------------------

    def _kicked(self, vring: Vring) -> None:
        if vring.is_enabled:
            self._run(vring)

    def _run(self, vring: Vring) -> None:
        """Let a ring run: the first one starts the device, others may join it later."""
        is_new = not (self._device.is_running and vring.queue.is_attached) and not vring.is_broken
        self._begin()
        if not vring.queue.is_attached and not vring.is_broken and self._attach(vring):
            vring.begin()
        if is_new:
            self._changed()
        self._service(vring)

    def is_active(self, index: int) -> bool:
        """Return whether buffers may be taken from a ring now."""
        return self._device.is_running and self._vrings[index].is_active

    def interrupt(self, index: int) -> None:
        """Notify the driver of used buffers."""
        self._vrings[index].interrupt()

    def broke(self, index: int, error: GuestError) -> None:
        """Take nothing more from a ring until the driver starts anew."""
        self._vrings[index].break_down()
        self._device.metrics.broken_queues += 1
        self.report_problem(f"the guest broke queue {index}: {error}")
        self._changed()

    def _service(self, vring: Vring) -> None:
        if self._due is None:
            self._slices.serve(vring.index, vring.queue)
        elif vring.index not in self._due:
            self._due.append(vring.index)

    def hold(self) -> None:
        """Serve nothing before `release`: what is being decided has to be saved first."""
        self._due = []

    def release(self) -> None:
        """Serve what was to be served meanwhile."""
        due, self._due = self._due, None
        for index in due or ():
            self._service(self._vrings[index])

    def stop(self, index: int) -> int:
        """Stop a ring and return where it stopped; a held stats buffer is given back unread."""
        vring = self._vrings[index]
        is_stats = self._device.role(index) is BalloonQueue.STATS
        if vring.is_started and is_stats and self._device.statistics.suspend():
            vring.state.next_avail = (vring.state.next_avail - 1) & 0xFFFF
        if vring.is_started:
            vring.mark = vring.looks()
        vring.stop()
        if not any(each.is_started for each in self._vrings):
            self._device.stop()
        return vring.state.next_avail

    def reset(self) -> None:
        """Stop all rings; whatever starts next is a new driver."""
        for vring in self._vrings:
            vring.stop()
            vring.mark, vring.is_enabled = None, False
        self._device.stop()

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        if not self.is_running:
            return False
        for vring in self._vrings:
            if vring.is_active and self._device.role(vring.index) is BalloonQueue.STATS:
                notify = self._device.statistics.give_back(vring.queue)
                if notify:
                    vring.interrupt()
                self._changed()
                return notify is not None
        return False

    def describe(self) -> list[dict[str, int]]:
        """Return which rings buffers may be taken from, and where they are in guest memory."""
        return [
            {"index": vring.index, **vring.queue.describe()}
            for vring in self._vrings
            if vring.is_active
        ]

    def close(self) -> None:
        """Let go of everything."""
        for vring in self._vrings:
            vring.close()

    # A successor -----------------------------------------------------------------------------

    def save(self) -> tuple[SavedVring, ...]:
        """Return what a successor needs, beside descriptors and positions."""
        return tuple(vring.save() for vring in self._vrings)

    def restore(self, accepted: events.SetFeatures, vrings: Iterable[SavedVring]) -> None:
        """Take over a predecessor's rings, without touching them yet.

        Raises:
            StateError: A descriptor is missing.
        """
        for vring, saved in zip(self._vrings, vrings, strict=False):
            vring.restore(saved, partial(self._kicked, vring))
        self.accept_features(accepted)

    def go_on(self, memory: MemoryMap) -> None:
        """Go on where the predecessor was killed, in its memory.

        Every ring is looked at and every driver notified: a kick or an interrupt may have got lost.
        """
        self.use(memory)
        running = [vring for vring in self._vrings if vring.is_started and vring.queue.is_attached]
        for vring in running:
            vring.go_on()
        for vring in running:
            if vring.is_active:
                vring.interrupt()
                self._service(vring)

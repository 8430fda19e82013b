"""Runs a VM's governor: gives it the time and the facts, and does what it decides.

Everything that changes the target comes through here, so that nobody asks the guest for anything
behind the governor's back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ballast.policy.governor import Governor
from ballast.policy.resize import Observation, OnFailure, ResizeRequest, is_there
from ballast.policy.result import ResizeResult
from ballast.policy.snapshot import restore, snapshot
from ballast_protocol.errors import OperatorError


class Steered(Protocol):
    """A guest that can be asked for a size."""

    def observe(self) -> Observation:
        """Return what is known of it now."""

    def ask(self, size_bytes: int | None) -> None:
        """Ask it for a size; None means all of its memory."""

    def set_inhibited(self, inhibited: bool) -> None:
        """Give nothing back to the host from now on, or do again.

        Raises:
            OperatorError: That is not ours to decide for this guest.
        """

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        """Tell operators of an event."""


class GovernorLoop:
    """Drives a `Governor`; implements `qmp.control.TargetControl`.

    Nothing runs while there is nothing to do: a target without a limit that nobody watches costs no
    timer.
    """

    def __init__(
        self,
        steered: Steered,
        governor: Governor,
        *,
        clock: Callable[[], float] = time.monotonic,
        save: Callable[[Mapping[str, object]], None] = lambda values: None,
    ) -> None:
        """Make it; nothing is asked before `begin`.

        Args:
            steered: The guest.
            governor: What decides.
            clock: Seconds; the event loop's clock, and the same one in all processes of a host.
            save: Given what a successor in another process needs, whenever that has changed.
        """
        self._steered = steered
        self._governor = governor
        self._clock = clock
        self._save = save
        self._saved: Mapping[str, object] = {}
        self._asked: int | None = None
        self._timer: asyncio.Handle | None = None
        self._told: tuple[object, ...] = ()
        self._waiting: dict[int, list[asyncio.Future[ResizeResult]]] = {}

    def begin(self, values: Mapping[str, object] | None = None) -> None:
        """Ask for what is wanted from the start, or go on where a predecessor stopped.

        Raises:
            OperatorError: The predecessor's values cannot be used.
        """
        governor = self._governor
        if values is not None:
            restore(governor, values, self._clock())
        if governor.inhibit_reason is not None:
            self._steered.set_inhibited(True)
        if governor.asked_bytes is not None:
            self._asked = governor.asked_bytes
            self._steered.ask(self._asked)
        self._act()

    def close(self) -> None:
        """Stop; whoever waits is told."""
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, {}
        for future in (each for futures in waiting.values() for each in futures):
            if not future.done():
                future.set_exception(OperatorError("the VM is no longer served"))

    # What operators want ---------------------------------------------------------------------

    @property
    def target_bytes(self) -> int | None:
        """The size that the guest shall have in the end, as it was set; None if it never was."""
        return self._governor.target_bytes

    @property
    def current_resize(self) -> int | None:
        """The number of the resize in progress; None if none is."""
        return self._governor.resize.id if self._governor.resize else None

    def set_target(self, target_bytes: int) -> None:
        """Set a target and watch nothing; ends a resize as superseded.

        Raises:
            HeldError: The target is on hold.
            OperatorError: The size is not positive.
        """
        self._governor.set_target(target_bytes, self._steered.observe(), self._clock())
        # Even if it is the old one: whoever repeats a target wants the guest to hear of it.
        self._act(insist=True)

    def start_resize(self, request: ResizeRequest) -> int:
        """Start a resize and return its number.

        Raises:
            HeldError: The target is on hold.
            InhibitedError: The guest would shrink, and nothing would be given back.
            OperatorError: The request makes no sense.
        """
        number = self._governor.start_resize(request, self._steered.observe(), self._clock())
        self._act(insist=True)
        return number

    async def resize(self, request: ResizeRequest) -> ResizeResult:
        """Start a resize and return what came of it; if this is cancelled, the resize goes on.

        Raises:
            OperatorError: It cannot be started, or the VM is no longer served.
        """
        return await self.wait(self.start_resize(request))

    async def wait(self, number: int) -> ResizeResult:
        """Return what came, or comes, of a resize.

        Raises:
            OperatorError: It is not known, or the VM is no longer served.
        """
        for result in self._governor.results:
            if result.id == number:
                return result
        if self._governor.resize is None or self._governor.resize.id != number:
            raise OperatorError(f"there is no resize {number}, or it ended long ago")
        future: asyncio.Future[ResizeResult] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(number, []).append(future)
        return await future

    def cancel(self, then: OnFailure) -> ResizeResult:
        """End the resize that is in progress.

        Raises:
            OperatorError: None is.
        """
        try:
            return self._governor.cancel(then, self._steered.observe(), self._clock())
        finally:
            self._act()

    def hold(self, reason: str | None) -> None:
        """Freeze the target for a reason, or release it with None."""
        if reason is None:
            self._governor.release_hold()
        else:
            self._governor.hold(reason, self._steered.observe(), self._clock())
        self._act()

    def inhibit(self, reason: str | None) -> None:
        """Give nothing back to the host for a reason, or do again with None.

        Raises:
            OperatorError: That is not ours to decide for this VM.
        """
        self._steered.set_inhibited(reason is not None)
        if reason is None:
            self._governor.release_inhibit()
        else:
            self._governor.inhibit(reason, self._steered.observe(), self._clock())
        self._act()

    def status(self) -> dict[str, object]:
        """Return everything there is to know of the target, ready for JSON."""
        seen, now, governor = self._steered.observe(), self._clock(), self._governor
        # Where nobody watches, this is when the guest is looked at.
        governor.follow(seen, now)
        hold, inhibit = governor.hold_reason, governor.inhibit_reason
        return {
            "guest": governor.guest_state(seen, now).value,
            "asked-bytes": governor.asked_bytes,
            "rate-bytes": governor.pace.rate_bytes,
            "hold": {"enabled": hold is not None, "reason": hold or ""},
            "inhibit": {"enabled": inhibit is not None, "reason": inhibit or ""},
            "current": self._progress(seen, now),
            "last": governor.results[-1].as_dict() if governor.results else None,
        }

    # What happens ----------------------------------------------------------------------------

    def driver_started(self) -> None:
        """A driver begins, or goes on after a pause; it has not read its target yet."""
        self._governor.driver_started(self._steered.observe(), self._clock())
        self._act()

    def actual_changed(self, actual_bytes: int | None) -> None:
        """The guest has another size; look at once if that may be the one that is waited for."""
        resize = self._governor.resize
        if resize is not None and is_there(actual_bytes, resize.request.target_bytes):
            self.look_soon()

    def look_soon(self) -> None:
        """Look at the guest in the event loop's next turn."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._timer = None
        self._governor.advance(self._steered.observe(), self._clock())
        self._act()

    # What follows from it --------------------------------------------------------------------

    def _act(self, *, insist: bool = False) -> None:
        """Do what the governor has decided, and set the clock for its next look."""
        if insist or self._governor.asked_bytes != self._asked:
            self._asked = self._governor.asked_bytes
            self._steered.ask(self._asked)
        values = snapshot(self._governor)
        if values != self._saved:
            self._saved = values
            self._save(values)
        seen, now = self._steered.observe(), self._clock()
        self._tell(seen, now)
        for result in self._governor.take_ended():
            self._ended(result)
        self._set_timer(self._governor.next_look(seen, now), now)

    def _set_timer(self, due: float | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(due - now, 0.0), self._look)

    def _tell(self, seen: Observation, now: float) -> None:
        """Tell of progress if there is any; the events are paced where they are sent."""
        progress = self._progress(seen, now)
        if progress is None:
            return
        news = (progress["id"], progress["actual-bytes"], progress["guest"])
        if news != self._told:
            self._told = news
            self._steered.emit("BALLAST_RESIZE_PROGRESS", progress)

    def _progress(self, seen: Observation, now: float) -> dict[str, object] | None:
        resize = self._governor.resize
        if resize is None:
            return None
        return {
            "id": resize.id,
            "guest": self._governor.guest_state(seen, now).value,
            "initial-bytes": resize.initial_bytes,
            "actual-bytes": seen.actual_bytes,
            "asked-bytes": self._governor.asked_bytes,
            "wanted-bytes": self._governor.wanted_bytes(seen),
            "seconds": round(max(0.0, now - resize.started_at), 3),
            "timeout-seconds": resize.request.timeout_seconds,
        }

    def _ended(self, result: ResizeResult) -> None:
        self._steered.emit("BALLAST_RESIZE_DONE", result.as_dict())
        for future in self._waiting.pop(result.id, ()):
            if not future.done():
                future.set_result(result)

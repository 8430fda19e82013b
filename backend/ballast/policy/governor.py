"""The governor of one VM: the only one who decides what size the guest is asked for.

It holds the *target* (what the operator wants), and moves what is *asked* of the guest towards it:
at once, or step by step under a rate limit. On top of that it watches one resize at a time. Every
call takes what is seen of the guest and the time; what came of it is in `asked_bytes`, and finished
resizes are taken with `take_ended`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast.policy.movement import Movement
from ballast.policy.pace import Pace
from ballast.policy.resize import (
    DEFAULT_STALL_SECONDS,
    GuestState,
    Observation,
    OnFailure,
    Outcome,
    ResizeRequest,
    attainable,
    check_target,
    is_there,
)
from ballast.policy.result import ResizeResult
from ballast_protocol.errors import OperatorError

LOOK_SECONDS = 0.25
"""How often a guest is looked at while a resize is watched."""

KEPT_RESULTS = 8
"""Results that can still be asked for."""

_MIN_MOVING_SECONDS = 1.0
"""A guest is not called slow before it has moved for as long as this."""


class HeldError(OperatorError):
    """The target is on hold, so it cannot be changed."""


class InhibitedError(OperatorError):
    """Nothing is given back to the host, so a smaller guest would be of no use."""


@dataclass
class Resize:
    """The resize that is being watched.

    Attributes:
        id: Its number.
        request: What was asked for.
        started_at: When.
        initial_bytes: What the guest had then, or when its driver came; None before it came.
        previous_bytes: The target from before, for a roll-back; None means all of its memory.
        previous_rate_bytes: The rate limit that went with it.
        moving_seconds: For how long the guest could move.
        looked_at: When it was last looked at.
        was_connected: QEMU has been there since.
    """

    id: int
    request: ResizeRequest
    started_at: float
    initial_bytes: int | None
    previous_bytes: int | None
    previous_rate_bytes: int
    looked_at: float
    moving_seconds: float = 0.0
    was_connected: bool = False

    @property
    def deadline(self) -> float:
        """When it has timed out."""
        return self.started_at + self.request.timeout_seconds


@dataclass
class Governor:
    """One VM's target. Time is an argument, in seconds from any origin.

    Attributes:
        target_bytes: The size that the guest shall have; None means all of its memory.
        asked_bytes: The size that it is to be asked for now; None means all of its memory.
        own_rate_bytes: The VM's own limit of bytes given up each second; 0 for none.
        pace: The limit that goes with the present target.
        movement: Whether the guest follows.
        hold_reason: Why the target is on hold; None if it is not.
        inhibit_reason: Why nothing is given back; None if it is.
        resize: The resize that is being watched.
        results: What came of the last few, oldest first.
        next_id: The number of the next one.
    """

    target_bytes: int | None = None
    own_rate_bytes: int = 0
    hold_reason: str | None = None
    inhibit_reason: str | None = None
    resize: Resize | None = None
    next_id: int = 1
    results: list[ResizeResult] = field(default_factory=list)
    asked_bytes: int | None = field(init=False)
    pace: Pace = field(init=False)
    movement: Movement = field(init=False)
    _ended: list[ResizeResult] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Ask for the whole target; a rate limit begins with the driver."""
        self.asked_bytes = self.target_bytes
        self.pace = Pace(self.own_rate_bytes)
        self.movement = Movement(0.0)

    # What operators want ---------------------------------------------------------------------

    def set_target(self, target_bytes: int, seen: Observation, now: float) -> None:
        """Set a target that nobody watches; it supersedes a resize.

        Raises:
            HeldError: The target is on hold.
            OperatorError: The size is not positive.
        """
        check_target(target_bytes)
        self._check_not_held()
        self._end(Outcome.SUPERSEDED, seen, now)
        self._aim(target_bytes, self.own_rate_bytes, seen, now)
        self.advance(seen, now)

    def start_resize(self, request: ResizeRequest, seen: Observation, now: float) -> int:
        """Set a target and watch what comes of it; return the resize's number.

        It may have ended when this returns: the guest may have that size already.

        Raises:
            HeldError: The target is on hold.
            InhibitedError: The guest would have to shrink, and nothing would be given back.
            OperatorError: The request makes no sense.
        """
        request.check()
        self._check_not_held()
        self._check_not_inhibited(request, seen)
        # Who supersedes an unfinished resize rolls back to where that one came from.
        previous = self.resize
        previous_bytes = previous.previous_bytes if previous else self.target_bytes
        previous_rate = previous.previous_rate_bytes if previous else self.pace.rate_bytes
        self._end(Outcome.SUPERSEDED, seen, now)
        rate = self.own_rate_bytes if request.rate_bytes is None else request.rate_bytes
        self._aim(request.target_bytes, rate, seen, now)
        self.resize = Resize(
            id=self.next_id,
            request=request,
            started_at=now,
            initial_bytes=seen.actual_bytes,
            previous_bytes=previous_bytes,
            previous_rate_bytes=previous_rate,
            looked_at=now,
        )
        self.next_id += 1
        started = self.resize.id
        self.advance(seen, now)
        return started

    def cancel(self, then: OnFailure, seen: Observation, now: float) -> ResizeResult:
        """End the resize that is being watched.

        Args:
            then: What becomes of the target.
            seen: The guest.
            now: The time.

        Raises:
            OperatorError: No resize is being watched.
        """
        self.advance(seen, now)
        if self.resize is None:
            raise OperatorError("no resize is in progress")
        return self._finish(self.resize, Outcome.CANCELLED, then, seen, now)

    def hold(self, reason: str, seen: Observation, now: float) -> None:
        """Freeze the target, at what the guest is asked for at this moment."""
        self.advance(seen, now)
        self.target_bytes = self.asked_bytes
        self._end(Outcome.HELD, seen, now)
        self.hold_reason = reason

    def release_hold(self) -> None:
        """Let the target be changed again."""
        self.hold_reason = None

    def inhibit(self, reason: str, seen: Observation, now: float) -> None:
        """Note that nothing is given back from now on; a resize that shrinks the guest ends."""
        self.inhibit_reason = reason
        if self.resize is not None and self._shrinks(self.resize.request.target_bytes, seen):
            then = self.resize.request.on_failure
            self._finish(self.resize, Outcome.INHIBITED, then, seen, now)

    def release_inhibit(self) -> None:
        """Note that memory is given back again."""
        self.inhibit_reason = None

    def _check_not_held(self) -> None:
        if self.hold_reason is not None:
            raise HeldError(
                f"the target is on hold: {self.hold_reason or 'no reason was given'}",
                hint="release it first: `ballast hold VM --release`, or QMP's ballast-hold",
            )

    def _check_not_inhibited(self, request: ResizeRequest, seen: Observation) -> None:
        if self.inhibit_reason is not None and self._shrinks(request.target_bytes, seen):
            raise InhibitedError(
                "nothing is given back to the host now, so a smaller guest frees no memory: "
                f"inhibited because {self.inhibit_reason or 'no reason was given'}",
                hint="end that with `ballast inhibit VM --release`, or QMP's ballast-inhibit",
            )

    def _shrinks(self, target_bytes: int, seen: Observation) -> bool:
        has = seen.ram_bytes if seen.actual_bytes is None else seen.actual_bytes
        wanted = attainable(target_bytes, seen.ram_bytes)
        return has is None or wanted is None or wanted < has

    # What happens ----------------------------------------------------------------------------

    def driver_started(self, seen: Observation, now: float) -> None:
        """A driver begins, or goes on after a pause: it is paced from what it has."""
        wanted, actual = self.wanted_bytes(seen), seen.actual_bytes
        if self.pace.rate_bytes and wanted is not None and actual is not None and wanted < actual:
            self.asked_bytes = actual
            self.pace.restart(now)
        self.movement.restart(actual, seen.attempts, now)
        if self.resize is not None:
            self.resize.looked_at = now

    def advance(self, seen: Observation, now: float) -> None:
        """Take note of what is seen: move on, or end the resize."""
        self._step(seen, now)
        self.follow(seen, now)
        resize = self.resize
        if resize is None:
            return
        if seen.is_running:
            resize.moving_seconds += max(0.0, now - resize.looked_at)
        resize.looked_at = now
        if resize.initial_bytes is None:
            resize.initial_bytes = seen.actual_bytes
        self._judge(resize, seen, now)

    def follow(self, seen: Observation, now: float) -> None:
        """Note whether the guest moves; one that is there or cannot move is not stuck."""
        asked, actual = attainable(self.asked_bytes, seen.ram_bytes), seen.actual_bytes
        if not seen.is_running or asked is None or actual is None or is_there(actual, asked):
            self.movement.restart(actual, seen.attempts, now)
        else:
            self.movement.look(actual, asked, seen.attempts, now)

    def next_look(self, seen: Observation, now: float) -> float | None:
        """Return when `advance` is due; None if only when something happens."""
        times = []
        if self.resize is not None:
            times.append(min(self.resize.deadline, now + LOOK_SECONDS))
        step = self._next_step(seen)
        if step is not None:
            times.append(step)
        return min(times, default=None)

    def take_ended(self) -> list[ResizeResult]:
        """Return the results that nobody has taken yet, oldest first."""
        ended, self._ended = self._ended, []
        return ended

    # What is the case ------------------------------------------------------------------------

    def wanted_bytes(self, seen: Observation) -> int | None:
        """Return the size that the guest should end up with; None if that is not known yet."""
        return attainable(self.target_bytes, seen.ram_bytes)

    def guest_state(self, seen: Observation, now: float) -> GuestState:
        """Return what the guest is doing about its target."""
        if not seen.is_connected:
            return GuestState.NO_QEMU
        if seen.actual_bytes is None:
            return GuestState.NO_DRIVER
        if is_there(seen.actual_bytes, self.wanted_bytes(seen)):
            return GuestState.SETTLED
        if not seen.is_running:
            return GuestState.PAUSED
        if self._is_stuck(now):
            return GuestState.STALLED
        return GuestState.SLOW if self._is_slow(seen, now) else GuestState.MOVING

    def _is_stuck(self, now: float) -> bool:
        patience = self.resize.request.stall_seconds if self.resize else 0
        return self.movement.standing_seconds(now) >= (patience or DEFAULT_STALL_SECONDS)

    def _is_slow(self, seen: Observation, now: float) -> bool:
        """Return whether the guest moves, but will not get there in time."""
        resize, wanted = self.resize, self.wanted_bytes(seen)
        if resize is None or resize.moving_seconds < _MIN_MOVING_SECONDS:
            return False
        if None in (resize.initial_bytes, wanted, seen.actual_bytes):
            return False
        moved = abs((seen.actual_bytes or 0) - (resize.initial_bytes or 0))
        left = abs((seen.actual_bytes or 0) - (wanted or 0))
        return left * resize.moving_seconds > moved * (resize.deadline - now)

    # How it goes -----------------------------------------------------------------------------

    def _aim(self, target_bytes: int | None, rate: int, seen: Observation, now: float) -> None:
        self.target_bytes = self.asked_bytes = target_bytes
        self.pace = Pace(rate, now)
        wanted, actual = self.wanted_bytes(seen), seen.actual_bytes
        is_paced = rate and seen.is_running
        if is_paced and wanted is not None and actual is not None and wanted < actual:
            self.asked_bytes = actual
        self.movement.restart(actual, seen.attempts, now)

    def _step(self, seen: Observation, now: float) -> None:
        """Ask for more if it is time; never of a guest that is not at work."""
        ram, wanted = seen.ram_bytes, self.wanted_bytes(seen)
        asked = attainable(self.asked_bytes, ram)
        if not seen.is_running or seen.actual_bytes is None:
            return
        if wanted is None or asked is None or asked == wanted:
            return
        ask = self.pace.next_ask(asked, wanted, seen.actual_bytes, now)
        # The target itself, not what it comes to now: it holds when memory is plugged in.
        self.asked_bytes = self.target_bytes if ask == wanted else ask

    def _next_step(self, seen: Observation) -> float | None:
        asked, wanted = attainable(self.asked_bytes, seen.ram_bytes), self.wanted_bytes(seen)
        if not seen.is_running or asked is None or wanted is None:
            return None
        return self.pace.next_step(asked, wanted)

    def _judge(self, resize: Resize, seen: Observation, now: float) -> None:
        resize.was_connected |= seen.is_connected
        then = resize.request.on_failure
        patience = resize.request.stall_seconds
        if is_there(seen.actual_bytes, self.wanted_bytes(seen)):
            self._finish(resize, Outcome.REACHED, OnFailure.KEEP, seen, now)
        elif resize.was_connected and not seen.is_connected:
            self._finish(resize, Outcome.DISCONNECTED, then, seen, now)
        elif now >= resize.deadline:
            self._finish(resize, Outcome.TIMED_OUT, then, seen, now)
        elif patience and self.movement.standing_seconds(now) >= patience:
            self._finish(resize, Outcome.STALLED, then, seen, now)

    def _end(self, outcome: Outcome, seen: Observation, now: float) -> None:
        """End the resize that is being watched, if one is; the target is the caller's matter."""
        if self.resize is not None:
            self._finish(self.resize, outcome, OnFailure.KEEP, seen, now)

    def _finish(
        self, resize: Resize, outcome: Outcome, then: OnFailure, seen: Observation, now: float
    ) -> ResizeResult:
        guest, tries = self.guest_state(seen, now), self.movement.tries(seen.attempts)
        wanted = attainable(resize.request.target_bytes, seen.ram_bytes)
        if then is OnFailure.SETTLE and seen.actual_bytes is None:
            then = OnFailure.KEEP
        self.resize = None
        if then is OnFailure.ROLLBACK:
            self._aim(resize.previous_bytes, resize.previous_rate_bytes, seen, now)
        elif then is OnFailure.SETTLE:
            self._aim(seen.actual_bytes, self.pace.rate_bytes, seen, now)
        result = ResizeResult(
            id=resize.id,
            outcome=outcome,
            guest=guest,
            initial_bytes=resize.initial_bytes,
            final_bytes=seen.actual_bytes,
            wanted_bytes=resize.request.target_bytes if wanted is None else wanted,
            in_force_bytes=self.wanted_bytes(seen),
            seconds=max(0.0, now - resize.started_at),
            tries=tries,
            then=then,
        )
        self.results = [*self.results, result][-KEPT_RESULTS:]
        self._ended.append(result)
        return result

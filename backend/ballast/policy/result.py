"""What came of a resize: how far, why no further, and what holds now."""

from __future__ import annotations

from dataclasses import dataclass

from ballast.policy.resize import GuestState, OnFailure, Outcome
from ballast.sizes import format_size


@dataclass(frozen=True)
class ResizeResult:
    """How far a resize got, and why it ended. Sizes are logical ones, in bytes.

    Attributes:
        id: Its number.
        outcome: Why it ended.
        guest: What the guest was doing at the end.
        initial_bytes: What the guest had at the start; None if its driver was not there.
        final_bytes: What it has now; None if its driver is not there.
        wanted_bytes: What it should have got to.
        in_force_bytes: The target that holds now; None means all of its memory.
        seconds: How long it took.
        tries: Whether the driver went on trying; None if that cannot be seen.
        then: What became of the target.
    """

    id: int
    outcome: Outcome
    guest: GuestState
    initial_bytes: int | None
    final_bytes: int | None
    wanted_bytes: int
    in_force_bytes: int | None
    seconds: float
    tries: bool | None
    then: OnFailure

    @property
    def is_reached(self) -> bool:
        """Whether the guest has the size that was asked for."""
        return self.outcome is Outcome.REACHED

    @property
    def is_rolled_back(self) -> bool:
        """Whether the target from before is in force again."""
        return self.then is OnFailure.ROLLBACK

    @property
    def moved_bytes(self) -> int:
        """How much the guest gave up or took back on balance; 0 if that is unknown."""
        if self.initial_bytes is None or self.final_bytes is None:
            return 0
        return abs(self.final_bytes - self.initial_bytes)

    def as_dict(self) -> dict[str, object]:
        """Return it as QMP and MQTT show it."""
        return {
            "id": self.id,
            "result": self.outcome.value,
            "explanation": self.explanation,
            "initial-bytes": self.initial_bytes,
            "final-bytes": self.final_bytes,
            "wanted-bytes": self.wanted_bytes,
            "moved-bytes": self.moved_bytes,
            "target-bytes": self.in_force_bytes,
            "seconds": round(self.seconds, 3),
            "guest": self.guest.value,
            "rolled-back": self.is_rolled_back,
        }

    @property
    def explanation(self) -> str:
        """The outcome in words, for people."""
        if self.is_reached:
            return f"the guest has {_size(self.final_bytes)}"
        return f"{self._why()}; {self._what_holds()}"

    def _why(self) -> str:
        if self.outcome is Outcome.TIMED_OUT:
            return self._timed_out()
        return {
            Outcome.STALLED: f"the guest stays at {_size(self.final_bytes)}: {self._why_stuck()}",
            Outcome.SUPERSEDED: "another target was set meanwhile",
            Outcome.CANCELLED: f"cancelled when {self._how_far()}",
            Outcome.INHIBITED: "giving memory back was inhibited meanwhile",
            Outcome.HELD: f"the target was put on hold when {self._how_far()}",
            Outcome.DISCONNECTED: "QEMU has gone",
        }[self.outcome]

    def _how_far(self) -> str:
        if self.final_bytes is None:
            return "the guest's balloon driver was not there"
        return f"the guest had {_size(self.final_bytes)} of {_size(self.wanted_bytes)}"

    def _timed_out(self) -> str:
        after = f"after {self.seconds:.3g} s"
        if self.guest is GuestState.NO_QEMU:
            return f"no QEMU has connected {after}"
        if self.final_bytes is None:
            return f"the guest's balloon driver has not started {after}"
        return f"{self._how_far()} {after}{self._what_it_did()}"

    def _what_it_did(self) -> str:
        if self.guest is GuestState.PAUSED:
            return ", and is paused"
        if self.guest is GuestState.STALLED:
            return f": {self._why_stuck()}"
        return ", and was still moving"

    def _why_stuck(self) -> str:
        if self.final_bytes is not None and self.final_bytes < self.wanted_bytes:
            return "it does not take its memory back"
        if self.tries is None:
            return "it gives nothing more up"
        return (
            "it keeps trying, but finds no memory to give up" if self.tries else "it does nothing"
        )

    def _what_holds(self) -> str:
        size = "all of its memory" if self.in_force_bytes is None else _size(self.in_force_bytes)
        if self.outcome is Outcome.SUPERSEDED:
            return f"its own was {_size(self.wanted_bytes)}"
        if self.is_rolled_back:
            return f"the target is {size} again"
        if self.then is OnFailure.SETTLE or self.outcome is Outcome.HELD:
            return f"the target is now {size}"
        return f"the target stays {size}"


def _size(size_bytes: int | None) -> str:
    return "an unknown size" if size_bytes is None else format_size(size_bytes)

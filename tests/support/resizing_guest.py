"""A guest with a governor, without a device: it follows as it can, and time is a number."""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast.policy.governor import Governor
from ballast.policy.resize import Observation, attainable
from ballast.policy.result import ResizeResult

MIB = 1 << 20
GIB = 1 << 30
RAM_BYTES = 4 * GIB


@dataclass
class ResizingGuest:
    """A guest whose balloon driver does what Linux's does.

    Attributes:
        governor: Who tells it what to have.
        now: The time.
        actual_bytes: What it has.
        floor_bytes: What it cannot go below.
        speed_bytes: What it can move in a second.
        attempts: How often it has told its size; None if that cannot be seen.
        is_mute: It says nothing while it does not move.
        is_connected: QEMU is there.
        is_running: The driver is at work.
        asked: Every size that it was asked for, with the time.
        results: What came of resizes.
    """

    governor: Governor = field(default_factory=Governor)
    now: float = 1000.0
    actual_bytes: int | None = RAM_BYTES
    floor_bytes: int = 0
    speed_bytes: int = GIB
    attempts: int | None = 0
    is_mute: bool = False
    is_connected: bool = True
    is_running: bool = True
    asked: list[tuple[float, int]] = field(default_factory=list)
    results: list[ResizeResult] = field(default_factory=list)

    @property
    def seen(self) -> Observation:
        return Observation(
            is_connected=self.is_connected,
            is_running=self.is_running,
            ram_bytes=RAM_BYTES if self.is_connected else None,
            actual_bytes=self.actual_bytes,
            attempts=self.attempts,
        )

    @property
    def asked_bytes(self) -> int:
        """What the device would ask of it now."""
        asked = attainable(self.governor.asked_bytes, RAM_BYTES)
        assert asked is not None
        return asked

    def tick(self, seconds: float) -> None:
        """Let the guest move for some time, then have it looked at."""
        self.now += seconds
        if self.is_running and self.actual_bytes is not None:
            wanted = max(self.asked_bytes, self.floor_bytes)
            reach = int(self.speed_bytes * seconds) // 4096 * 4096
            change = min(abs(wanted - self.actual_bytes), reach)
            self.actual_bytes += change if wanted > self.actual_bytes else -change
            is_trying = change or (self.actual_bytes != self.asked_bytes and not self.is_mute)
            if self.attempts is not None and is_trying:
                self.attempts += 1
        self.look()

    def look(self) -> None:
        self.governor.advance(self.seen, self.now)
        self.results += self.governor.take_ended()
        if not self.asked or self.asked[-1][1] != self.asked_bytes:
            self.asked.append((self.now, self.asked_bytes))

    def run(self, seconds: float) -> None:
        """Look as often as the governor wants it, until some time has passed."""
        end = self.now + seconds
        while self.now < end:
            due = self.governor.next_look(self.seen, self.now)
            self.tick(min(max((end if due is None else due) - self.now, 0.001), end - self.now))

    def boot(self) -> None:
        """A driver begins that has given up nothing."""
        self.actual_bytes, self.is_running = RAM_BYTES, True
        self.governor.driver_started(self.seen, self.now)
        self.look()

    def stop(self) -> None:
        """A pause: the driver stands still."""
        self.is_running = False
        self.look()

    def resume(self) -> None:
        self.is_running = True
        self.governor.driver_started(self.seen, self.now)
        self.look()

    def leave(self) -> None:
        """QEMU ends."""
        self.is_connected = self.is_running = False
        self.actual_bytes = None
        self.look()

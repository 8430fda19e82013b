"""Whatever happens in whatever order: what a governor never does."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ballast.policy.governor import Governor, HeldError, InhibitedError
from ballast.policy.resize import OnFailure, Outcome, ResizeRequest
from ballast.policy.snapshot import restore, snapshot
from ballast_protocol.errors import OperatorError
from support.resizing_guest import GIB, MIB, RAM_BYTES, ResizingGuest

sizes = st.integers(1, 6 * 1024).map(lambda mib: mib * MIB)
rates = st.sampled_from([0, 1, 64 << 10, 100 * MIB, 10 * GIB])


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.guest = ResizingGuest(Governor(own_rate_bytes=50 * MIB), floor_bytes=512 * MIB)
        self.started: list[int] = []
        self.deadline = 0.0
        self.held_target: int | None = None

    @property
    def governor(self) -> Governor:
        return self.guest.governor

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.guest.run(seconds)

    @rule(size=sizes)
    def set_target(self, size: int) -> None:
        try:
            self.governor.set_target(size, self.guest.seen, self.guest.now)
        except HeldError:
            assert self.governor.hold_reason is not None
        else:
            assert self.governor.target_bytes == size
            assert self.governor.resize is None
        self.guest.look()

    @rule(
        size=sizes,
        timeout=st.floats(0.1, 100),
        stall=st.sampled_from([0.0, 1.0, 10.0]),
        rate=st.none() | rates,
        then=st.sampled_from(OnFailure),
    )
    def start(
        self, size: int, timeout: float, stall: float, rate: int | None, then: OnFailure
    ) -> None:
        request = ResizeRequest(size, timeout, stall, rate, then)
        try:
            number = self.governor.start_resize(request, self.guest.seen, self.guest.now)
        except (HeldError, InhibitedError):
            assert self.governor.hold_reason is not None or self.governor.inhibit_reason is not None
        else:
            self.started.append(number)
            self.deadline = self.guest.now + timeout
        self.guest.look()

    @rule(then=st.sampled_from(OnFailure))
    def cancel(self, then: OnFailure) -> None:
        try:
            self.governor.cancel(then, self.guest.seen, self.guest.now)
        except OperatorError:
            assert self.governor.resize is None
        self.guest.look()

    @rule(on=st.booleans())
    def hold(self, on: bool) -> None:
        if on:
            self.governor.hold("", self.guest.seen, self.guest.now)
            self.held_target = self.governor.target_bytes
        else:
            self.governor.release_hold()
        self.guest.look()

    @rule(on=st.booleans())
    def inhibit(self, on: bool) -> None:
        if on:
            self.governor.inhibit("", self.guest.seen, self.guest.now)
        else:
            self.governor.release_inhibit()
        self.guest.look()

    @rule(speed=st.sampled_from([0, 4096, 10 * MIB, 10 * GIB]))
    def speed(self, speed: int) -> None:
        self.guest.speed_bytes = speed

    @precondition(lambda self: self.guest.is_connected)
    @rule()
    def boot(self) -> None:
        self.guest.boot()

    @precondition(lambda self: self.guest.is_running)
    @rule()
    def pause(self) -> None:
        self.guest.stop()

    @precondition(lambda self: self.guest.actual_bytes is not None and not self.guest.is_running)
    @rule()
    def resume(self) -> None:
        self.guest.resume()

    @rule(on=st.booleans())
    def qemu(self, on: bool) -> None:
        if on:
            self.guest.is_connected = True
            self.guest.look()
        else:
            self.guest.leave()

    @rule()
    def another_process(self) -> None:
        before = snapshot(self.governor)
        following = Governor(own_rate_bytes=50 * MIB)
        restore(following, before, self.guest.now)
        assert snapshot(following) == before
        self.guest.governor = following

    @invariant()
    def every_resize_ends_once(self) -> None:
        ended = [each.id for each in self.guest.results]
        assert ended == sorted(set(ended))
        running = [self.governor.resize.id] if self.governor.resize else []
        assert ended + running == self.started

    @invariant()
    def none_outlives_its_deadline(self) -> None:
        assert self.governor.resize is None or self.guest.now <= self.deadline

    @invariant()
    def the_guest_is_asked_for_the_target_or_on_the_way_down_to_it(self) -> None:
        wanted = self.governor.wanted_bytes(self.guest.seen) or RAM_BYTES
        assert min(wanted, RAM_BYTES) <= self.guest.asked_bytes <= RAM_BYTES
        if not self.governor.pace.rate_bytes:
            assert self.governor.asked_bytes == self.governor.target_bytes

    @invariant()
    def a_held_target_stays(self) -> None:
        if self.governor.hold_reason is not None:
            assert self.governor.target_bytes == self.held_target
            assert self.governor.resize is None

    @invariant()
    def what_is_called_reached_was(self) -> None:
        for result in self.guest.results:
            if result.outcome is Outcome.REACHED:
                assert result.final_bytes == result.wanted_bytes
            assert result.explanation
            assert result.seconds >= 0


Life.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestLife = Life.TestCase

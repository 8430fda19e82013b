from __future__ import annotations

import pytest

from ballast_agent.blocks.options import BlockOptions
from ballast_agent.blocks.reclaim import (
    MAX_STEP_BYTES,
    MAX_STEP_SECONDS,
    STEP_SECONDS,
    Reclaimer,
    ReclaimPace,
)
from ballast_agent.blocks.status import Counts
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import BLOCK_BYTES
from support.block_world import Later, World
from support.fake_kernel import CACHE, FakeKernel

GIB = 1 << 30


def test_a_small_share_at_a_time_while_nobody_waits() -> None:
    pace = ReclaimPace()
    assert pace.step_bytes(10 * GIB, 5.0, 0.0) == 0, "it has to know how much waiting is new"
    assert pace.step_bytes(10 * GIB, 5.0, 20.0) == 10 * GIB // 100
    assert pace.next == 20.0 + STEP_SECONDS
    assert pace.step_bytes(100 * GIB, 5.005, 30.0) == MAX_STEP_BYTES
    assert pace.step_bytes(GIB // 10, 5.005, 40.0) == 0, "less than a block is not worth it"


def test_pauses_grow_while_somebody_waits() -> None:
    pace = ReclaimPace()
    now, stalled, pauses = 0.0, 0.0, []
    for _ in range(7):
        stalled += 1.0
        assert pace.step_bytes(10 * GIB, stalled, now) == 0
        pauses.append(pace.next - now)
        now = pace.next
    assert pauses[:2] == [2 * STEP_SECONDS, 4 * STEP_SECONDS]
    assert pauses[-1] == MAX_STEP_SECONDS
    assert pace.step_bytes(10 * GIB, stalled, now) > 0
    assert pace.next - now == MAX_STEP_SECONDS / 2


def test_it_is_off_unless_asked_for() -> None:
    for options in (BlockOptions(), BlockOptions(reclaim=True)):
        world = World(FakeKernel.of(1000), options)
        world.kernel.use(800, state=CACHE)
        world.run(200.0)
        left = len(world.kernel.in_state(CACHE))
        assert left < 700 if options.reclaim else left == 800
        reclaimed = world.last_status().counters.reclaimed_bytes
        # The last status may be older than the last step.
        assert (reclaimed > 0) is options.reclaim
        assert reclaimed <= (800 - left) * BLOCK_BYTES


def test_a_kernel_that_cannot_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    class Unable(FakeKernel):
        def reclaim(self, size_bytes: int) -> None:
            raise OperatorError("no such file")

    kernel = Unable(FakeKernel.of(1000).blocks)
    kernel.use(800, state=CACHE)
    background, counts = Later(), Counts()
    reclaimer = Reclaimer(kernel, background, counts)
    for now in (10.0, 30.0, 50.0, 70.0):
        reclaimer.look(now)
        background.finish()
    assert reclaimer.deadline() is None
    assert caplog.text.count("not reclaimed any more: no such file") == 1

"""The agent's blocks, with a kernel that behaves as Linux does, and a host that keeps its word."""

from __future__ import annotations

import pytest

from ballast_agent.blocks.options import BlockOptions
from ballast_protocol.guest import HelloRequest
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    BLOCK_BYTES,
    MAX_REPORT_BLOCKS,
    BlocksReport,
    Compact,
    CompactDone,
    Purpose,
    SetSweeps,
    Sweep,
    SweepDone,
    split_blocks,
)
from support.block_world import World
from support.fake_kernel import CACHE, FREE, POOL, USED, FakeKernel

RESERVE = 8


def test_a_goal_is_reached_and_lowered(world: World) -> None:
    up = world.aim((ANY_NODE, 300))
    world.run()
    status = world.status_of(up)
    assert (status.settled, status.short_reason) == (True, None)
    assert status.nodes[0].held_bytes == status.goal_bytes == 300 * BLOCK_BYTES
    assert status.counters.tried_blocks == status.counters.isolated_blocks == 300
    assert status.counters.freed_bytes == 300 * BLOCK_BYTES
    assert len(world.isolated) == 300
    world.assert_books_agree()

    down = world.aim((ANY_NODE, 100))
    world.run()
    assert world.status_of(down).nodes[0].held_bytes == 100 * BLOCK_BYTES
    world.assert_books_agree()
    world.aim()
    world.run()
    assert world.ledger == set()
    assert not world.kernel.is_claimed()


def test_reports_are_bounded_and_so_is_their_number(world: World) -> None:
    world.aim((ANY_NODE, 200))
    world.agent_writes()
    world.host_reads()
    world.agent_reads()
    world.agent_writes()
    assert world.host is not None
    world.host_reads()
    reports = [m for _, m in world.host.heard if isinstance(m, BlocksReport)]
    assert [len(split_blocks(report.ranges)) for report in reports] == [MAX_REPORT_BLOCKS] * 2
    world.run()
    assert len(world.ledger) == 200


def test_the_reserve_is_never_taken(world: World) -> None:
    goal = world.aim((ANY_NODE, 400))
    world.run()
    status = world.status_of(goal)
    assert status.short_reason == "only the reserve is left"
    assert len(world.ledger) == 400 - RESERVE
    world.kernel.use(1)
    world.run(20.0)
    assert len(world.ledger) == 400 - RESERVE, "it neither takes nor gives between the levels"
    world.assert_books_agree()


def test_room_is_made_where_none_is_free(world: World) -> None:
    world.kernel.use(250)
    world.kernel.use(100, state=CACHE)
    world.kernel.hidden = 20
    goal = world.aim((ANY_NODE, 90))
    world.run()
    assert world.kernel.compactions == 1
    assert world.status_of(goal).short_reason is None
    assert len(world.ledger) == 90
    assert len(world.kernel.in_state(CACHE)) <= 60
    world.assert_books_agree()


def test_what_cannot_be_had_is_tried_again_later(world: World) -> None:
    world.kernel.use(380)
    world.kernel.use(12, state=CACHE)
    goal = world.aim((ANY_NODE, 50))
    world.run()
    assert world.status_of(goal).short_reason == "only the reserve is left"
    world.kernel.free(300)
    world.run(200.0)
    assert len(world.ledger) == 50
    assert world.last_status().short_reason is None


def test_under_pressure_everything_needed_goes_back_in_one_step(world: World) -> None:
    world.aim((ANY_NODE, 350))
    world.run()
    world.kernel.use(47)
    world.now += 0.6
    world.agent_ticks()
    assert len(world.isolated) == 350 - 87, "a quarter at least, and twice the reserve again"
    world.run()
    assert world.last_status().pressure
    world.assert_books_agree()

    world.kernel.use(88)
    world.now += 0.6
    world.agent_ticks()
    assert world.isolated == set(), "pressure that is back at once gets everything"
    world.run(5.0)
    assert world.ledger == set(), "nothing is taken while the guest recovers"
    world.kernel.free(135)
    world.run(60.0)
    assert len(world.ledger) == 350
    assert world.last_status().counters.pressure_releases == 2


def test_stalls_count_only_where_memory_is_short(world: World) -> None:
    world.aim((ANY_NODE, 300))
    world.run()
    world.blocks.stalled(world.now)
    assert len(world.isolated) == 300
    world.kernel.use(80)
    world.blocks.stalled(world.now)
    assert len(world.isolated) == 300 - 75
    world.run()
    world.assert_books_agree()


def test_nothing_goes_back_while_a_report_is_unanswered(world: World) -> None:
    world.aim((ANY_NODE, 380))
    world.run()
    world.aim((ANY_NODE, 390))
    world.agent_writes()
    world.host_reads()
    world.agent_reads()
    world.agent_writes()
    world.kernel.use(10)
    world.now += 0.6
    world.agent_ticks()
    assert len(world.isolated) == 390
    world.host_reads()
    world.agent_reads()
    assert len(world.isolated) < 390
    world.run()
    world.assert_books_agree()


def test_a_sweep_reports_all_that_is_free_and_gives_it_back(world: World) -> None:
    world.aim((ANY_NODE, 50))
    world.run()
    world.kernel.use(100)
    request_id = world.say(Sweep())
    world.run()
    done = world.answer(request_id)
    assert isinstance(done, SweepDone)
    assert done.isolated_blocks == done.tried_blocks == 250 - RESERVE // 2
    assert done.reported_bytes == done.freed_bytes == done.isolated_blocks * BLOCK_BYTES
    assert done.reason == "only the reserve is left"
    assert len(world.ledger) == 50
    world.assert_books_agree()
    assert world.host is not None
    purposes = [m.purpose for _, m in world.host.heard if isinstance(m, BlocksReport)]
    assert purposes[0] is Purpose.HOLD
    assert set(purposes[1:]) == {Purpose.SWEEP}


def test_a_sweep_ends_however_busily_the_guest_frees_and_takes(world: World) -> None:
    """What was reported is held until the sweep ends, so no block is reported twice."""
    world.kernel.use(300)
    request_id = world.say(Sweep())
    for _ in range(1000):
        world.kernel.free(5)
        world.kernel.use(5)
        world.agent_writes()
        world.host_reads()
        world.agent_reads()
        world.agent_ticks()
        if world.answer(request_id) is not None:
            break
    done = world.answer(request_id)
    assert isinstance(done, SweepDone)
    assert world.host is not None
    swept = [
        pfn
        for _, message in world.host.heard
        if isinstance(message, BlocksReport)
        for pfn in split_blocks(message.ranges)
    ]
    assert len(swept) == len(set(swept)) == done.isolated_blocks
    world.run()
    world.assert_books_agree()


@pytest.mark.parametrize("seen_each_time", [100, 0])
def test_a_sweep_ends_also_where_memory_is_not_where_it_was(seen_each_time: int) -> None:
    """Pages that are not found at once are looked for again, and given back if they are nowhere."""
    kernel = FakeKernel.of(100, 200)
    kernel.unseen, kernel.seen_each_time = 50, seen_each_time
    world = World(kernel)
    world.run()
    request_id = world.say(Sweep())
    world.run(30.0)
    done = world.answer(request_id)
    assert isinstance(done, SweepDone)
    found = 300 if seen_each_time else 250
    assert done.reported_bytes <= found * BLOCK_BYTES
    assert done.reported_bytes == (300 - RESERVE // 2) * BLOCK_BYTES or not seen_each_time
    assert world.isolated == set()
    world.assert_books_agree()


def test_sweeps_without_being_asked(world: World) -> None:
    world.say(SetSweeps(every_seconds=60.0))
    world.run(59.0)
    assert world.host is not None
    assert not [m for _, m in world.host.heard if isinstance(m, SweepDone)]
    world.run(62.0)
    done = [m for _, m in world.host.heard if isinstance(m, SweepDone)]
    assert len(done) == 2
    assert done[0].reported_bytes == (400 - RESERVE // 2) * BLOCK_BYTES

    world.say(SetSweeps(when_free_bytes=100 * BLOCK_BYTES))
    world.kernel.use(350)
    world.run(30.0)
    before = world.last_status().counters.sweeps
    world.kernel.free(99)
    world.run(30.0)
    assert world.last_status().counters.sweeps == before
    world.kernel.free(1)
    world.run(30.0)
    assert world.last_status().counters.sweeps == before + 1


def test_a_sweep_that_ends_while_the_session_begins_anew_is_answered() -> None:
    world = World(FakeKernel.of(400), BlockOptions(enabled=False))
    world.run()
    world.say(HelloRequest())
    request_id = world.say(Sweep())
    world.run()
    assert isinstance(world.answer(request_id), SweepDone)


def test_nodes_have_goals_of_their_own() -> None:
    world = World(FakeKernel.of(100, 200))
    world.run()
    world.aim((1, 150), (ANY_NODE, 40))
    world.run()
    held = {node.node: node.held_bytes // BLOCK_BYTES for node in world.last_status().nodes}
    assert held == {0: 40, 1: 150}
    request_id = world.say(Sweep(0))
    world.run()
    done = world.answer(request_id)
    assert isinstance(done, SweepDone)
    assert done.isolated_blocks == 60
    world.aim((0, 100), (1, 20))
    world.run()
    held = {node.node: node.held_bytes // BLOCK_BYTES for node in world.last_status().nodes}
    assert held == {0: 100, 1: 20}
    world.assert_books_agree()


def test_compaction_on_request(world: World) -> None:
    world.kernel.hidden = 399
    request_id = world.say(Compact())
    world.run()
    assert world.answer(request_id) == CompactDone(0.5, 1, 400)


@pytest.mark.parametrize("hindrance", [None, "this guest has a virtio-mem device"])
def test_guests_that_must_be_left_alone_are(world: World, hindrance: str | None) -> None:
    if hindrance is None:
        for block in world.kernel.in_state(FREE)[:3]:
            world.kernel._join_pool(block)
    world.kernel.hindrance = hindrance
    goal, sweep = world.aim((ANY_NODE, 10)), world.say(Sweep())
    world.run()
    status = world.status_of(goal)
    assert status.refusing == (hindrance or "this guest uses huge pages itself: 3 of 2 MiB")
    done = world.answer(sweep)
    assert isinstance(done, SweepDone)
    assert done.reason == status.refusing
    assert world.ledger == set()
    assert len(world.kernel.in_state(POOL)) == (0 if hindrance else 3)


def test_somebody_who_begins_to_use_huge_pages_gets_the_pool(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.kernel.resize_pool(0, 110)
    assert world.kernel.map_huge(10) == 10
    world.aim((ANY_NODE, 120))
    world.run(5.0)
    assert world.ledger == set()
    assert len(world.kernel.in_state("app")) == 10
    assert world.kernel.in_state(POOL) == []
    assert "huge pages" in str(world.last_status().refusing)
    world.kernel.unmap_huge()
    world.kernel.resize_pool(0, 0)
    world.run(200.0)
    assert len(world.ledger) == 120


def test_blocks_that_the_kernel_took_away_are_struck_out(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.kernel.replace(min(world.isolated))
    world.aim((ANY_NODE, 150))
    world.run()
    world.assert_books_agree()
    assert len(world.ledger) >= 100
    assert len(world.kernel.in_state(USED)) == 1

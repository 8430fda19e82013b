"""The agent's blocks when its host refuses, goes, comes back, or is succeeded; when it stops."""

from __future__ import annotations

from ballast_agent.blocks.options import BlockOptions
from ballast_protocol.guest import HelloRequest
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    BlocksReport,
    split_blocks,
)
from support.block_world import World
from support.fake_kernel import FREE, FakeKernel


def test_blocks_that_the_host_refuses_go_back(world: World) -> None:
    assert world.host is not None
    world.host.refuse = {block.pfn for block in world.kernel.in_state(FREE)[::2]}
    goal = world.aim((ANY_NODE, 100))
    world.run()
    assert world.status_of(goal).short_reason == "the host refused blocks"
    assert world.ledger <= world.isolated
    assert world.host.refuse.isdisjoint(world.ledger)
    assert len(world.isolated) < 100
    world.kernel.verify()


def test_what_a_session_has_refused_is_reported_in_the_next(world: World) -> None:
    """A host that has lost the session refuses everything, for no fault of the blocks."""
    assert world.host is not None
    goal = world.aim((ANY_NODE, 100))
    world.host_reads()
    world.agent_reads()
    world.agent_writes()
    world.host.session = None
    world.run()
    assert world.status_of(goal).short_reason == "the host refused blocks"
    assert world.ledger == world.isolated == set()
    world.say(HelloRequest())
    world.run()
    world.aim((ANY_NODE, 100))
    world.run()
    assert len(world.ledger) == 100
    world.assert_books_agree()


def test_a_host_that_comes_back_learns_what_is_held(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.stop_host()
    assert world.host is not None
    forgotten = sorted(world.ledger)[:10]
    for pfn in forgotten:
        del world.host.ledger[pfn]
    world.host.ledger[1 << 30] = 0
    world.run(30.0)
    assert len(world.isolated) == 100
    world.start_host()
    world.run()
    world.assert_books_agree()
    again = [m for _, m in world.host.heard if isinstance(m, BlocksReport)]
    assert [sorted(split_blocks(report.ranges)) for report in again] == [forgotten]


def test_pressure_is_answered_without_a_host(world: World) -> None:
    world.aim((ANY_NODE, 380))
    world.run()
    world.stop_host()
    world.kernel.use(18)
    world.run(1.0)
    assert len(world.isolated) < 380
    world.start_host()
    world.run()
    world.assert_books_agree()


def test_a_killed_agent_is_succeeded(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.kill_agent()
    world.start_agent()
    world.run(1.0)
    assert len(world.ledger) == 100
    world.assert_books_agree()
    world.aim((ANY_NODE, 30))
    world.run()
    assert len(world.isolated) == 30
    world.assert_books_agree()


def test_a_host_that_wants_no_blocks_gets_none_and_leaves_none(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.stop_host()
    world.start_host()
    assert world.host is not None
    world.host.wants_blocks = False
    world.run()
    assert world.isolated == set()


def test_an_agent_without_blocks_gives_back_what_it_finds() -> None:
    world = World(FakeKernel.of(400))
    world.run()
    world.aim((ANY_NODE, 100))
    world.run()
    world.kill_agent()
    world.options = BlockOptions(enabled=False)
    world.start_agent()
    world.run(1.0)
    goal = world.aim((ANY_NODE, 50))
    world.run()
    assert world.isolated == world.ledger == set()
    assert world.status_of(goal).refusing == "switched off in the guest (--no-blocks)"


def test_an_agent_that_stops_gives_everything_back(world: World) -> None:
    world.aim((ANY_NODE, 100))
    world.run()
    world.blocks.stop(world.now)
    world.run()
    assert world.blocks.is_empty
    assert world.isolated == world.ledger == set()

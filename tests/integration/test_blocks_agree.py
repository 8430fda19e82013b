"""The daemon's half of the trade in blocks against the agent's, over a channel that breaks.

The guest's kernel is a model that checks every discard: no page is ever in use when the host drops
it. When everything works again, the daemon's book is the kernel's pool, block for block.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ballast_protocol.guest_blocks import Sweep
from support.block_trade import BLOCKS, Guest, guest
from support.block_world import World
from support.fake_kernel import FREE


def squeeze(guest: Guest) -> None:
    """Have the guest use nearly all that is free, and the agent see it."""
    guest.kernel.use(max(0, len(guest.kernel.in_state(FREE)) - 3))
    guest.now += 1.0
    guest.agent_ticks()


def tick(guest: Guest) -> None:
    guest.now += 3.0
    guest.agent_ticks()


def kill_soon(guest: Guest) -> None:
    guest.kernel.fuse = random.Random(guest.now).randrange(20)


STEPS: dict[str, Callable[[Guest], object]] = {
    "use": lambda guest: guest.kernel.use(20),
    "free": lambda guest: guest.kernel.free(30),
    "squeeze": squeeze,
    "offline": lambda guest: guest.kernel.offline(sorted(guest.kernel.blocks)[10:13]),
    "kill": World.kill_agent,
    "kill soon": kill_soon,
    "start agent": World.start_agent,
    "tick": tick,
    "goal": lambda guest: guest.there.aim(60),
    "small goal": lambda guest: guest.there.aim(5),
    "no goal": lambda guest: guest.there.aim(0),
    "sweep": lambda guest: guest.there.send(Sweep(), 77),
    "write": World.agent_writes,
    "write some": lambda guest: guest.agent_writes(300),
    "read": World.host_reads,
    "read some": lambda guest: guest.host_reads(500),
    "hear": World.agent_reads,
    "hear some": lambda guest: guest.agent_reads(200),
    "run": lambda guest: guest.run(1.0),
    "host goes": Guest.stop_host,
    "host comes": lambda guest: None if guest._told else guest.start_host(),
    "worker restarts": Guest.next_worker,
    "driver restarts": lambda guest: guest.there.forget(),
}


@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=40),
    seed=st.integers(0, 50),
)
@example(steps=["use", "use", "use"], seed=0)  # nearly short of memory for minutes
@settings(max_examples=100, deadline=None)
def test_no_page_in_use_is_discarded_and_the_books_agree_in_the_end(
    steps: list[str], seed: int
) -> None:
    with guest(seed) as world:
        world.run()
        world.there.aim(40)
        for step in steps:
            STEPS[step](world)
            world.kernel.verify()
        heal(world)
        assert world.there.held == world.isolated
        world.there.aim(0)
        world.run(100.0)
        assert world.there.held == world.isolated == set()
        world.kernel.verify()


DISRUPTIONS = (
    *("kill", "start agent", "tick", "squeeze", "host goes", "host comes", "worker restarts"),
    *("driver restarts", "no goal", "write", "read some", "read", "hear", "offline"),
)


@given(
    steps=st.lists(st.sampled_from(DISRUPTIONS), min_size=1, max_size=8),
    held=st.sampled_from([0, 30]),
    seed=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_reports_that_nobody_has_read_yet(steps: list[str], held: int, seed: int) -> None:
    """Whatever befalls either end then, and however late a daemon reads them."""
    with guest(seed) as world:
        world.run()
        world.there.aim(held)
        world.run(10.0)
        world.there.aim(held + 40)
        world.host_reads()
        world.agent_reads()
        world.agent_writes()
        for step in steps:
            STEPS[step](world)
        for _ in range(3):
            squeeze(world)
            world.kernel.use(len(world.kernel.in_state(FREE)))
        if not world._told:
            world.start_host()
        world.host_reads()
        world.run(3.0)
        world.kernel.verify()


def test_what_a_dead_conversation_left_unread_is_never_discarded() -> None:
    """The case that the numbers of sessions are for, step by step."""
    with guest(1) as world:
        world.run()
        world.there.aim(40)
        world.host_reads()
        world.agent_reads()
        world.agent_writes()
        reported = world.isolated
        assert len(reported) == 40
        world.stop_host()  # the agent sees it, and the bytes stay in QEMU
        for _ in range(20):
            world.kernel.use(len(world.kernel.in_state(FREE)))
            world.now += 10.0
            world.agent_ticks()
        world.kernel.use(BLOCKS)
        assert reported - world.isolated
        world.start_host()
        world.host_reads()
        assert world.there.blocks.counters.stale_messages > 0
        world.kernel.verify()
        heal(world)
        assert world.there.held == world.isolated


def heal(world: Guest) -> None:
    """Let everything work again and come to rest."""
    world.kernel.fuse = None
    if not world._told:
        world.start_host()
    world.start_agent()
    world.run(100.0)


def test_what_is_wanted_is_held() -> None:
    with guest(1) as world:
        world.run()
        world.there.aim(40)
        world.run(10.0)
        assert len(world.there.held) == 40
        assert world.there.held == world.isolated
        assert world.there.blocks.has_settled
        with_goal = world.there.book.metrics.reports
        world.kill_agent()
        world.start_agent()
        world.run(10.0)
        assert len(world.there.held) == 40
        assert world.there.book.metrics.reports == with_goal

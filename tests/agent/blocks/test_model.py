"""Anything can happen at any moment: no page is ever in use and discarded after that.

The agent is killed within calls to its kernel, bytes are held up or cut short anywhere on the
channel, the host goes and comes back with reports in between unread, programs map huge pages, and
memory goes offline. The kernel of the model checks every discard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ballast_agent.blocks import limits as agent_limits
from ballast_protocol.guest import HelloRequest
from ballast_protocol.guest_blocks import ANY_NODE, Compact, SetSweeps, Sweep
from support.block_world import World
from support.fake_kernel import CACHE, FREE, USED, FakeKernel

counts = st.integers(1, 120)
limits = st.one_of(st.integers(1, 200), st.just(1 << 30))


@pytest.fixture(scope="module", autouse=True)
def few_looks() -> Iterator[None]:
    """Look at the guest's memory ten times a second at most, because minutes are played here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_limits, "MIN_WATCH_SECONDS", 0.1)
        yield


class Blocks(RuleBasedStateMachine):
    world: World

    @initialize(seed=st.integers(0, 1 << 30), nodes=st.sampled_from([(150,), (60, 90)]))
    def boot(self, seed: int, nodes: tuple[int, ...]) -> None:
        self.world = World(FakeKernel.of(*nodes, seed=seed))
        self.world.run()

    # The guest

    @rule(count=counts, state=st.sampled_from([USED, CACHE]))
    def use(self, count: int, state: str) -> None:
        self.world.kernel.use(count, state=state)

    @rule(count=counts, state=st.sampled_from([USED, CACHE]))
    def free(self, count: int, state: str) -> None:
        self.world.kernel.free(count, state)

    @rule(count=st.integers(1, 20))
    def map_huge(self, count: int) -> None:
        self.world.kernel.map_huge(count)

    @rule()
    def unmap_huge(self) -> None:
        self.world.kernel.unmap_huge()

    @rule(index=st.integers(0, 150), count=st.integers(1, 8))
    def offline(self, index: int, count: int) -> None:
        pfns = sorted(self.world.kernel.blocks)[index:][:count]
        self.world.kernel.offline(pfns)

    @rule(count=st.integers(1, 8))
    def dissolve(self, count: int) -> None:
        """Let memory go offline between two calls of the agent's."""
        self.world.kernel.dissolving = count

    @rule(count=st.integers(1, 4))
    def squeeze(self, count: int) -> None:
        """Use all but a few of the free blocks, and let the agent see it."""
        self.world.kernel.use(max(0, len(self.world.kernel.in_state(FREE)) - count))
        self.world.now += 1.0
        self.world.agent_ticks()

    # The agent

    @rule(fuse=st.integers(0, 40))
    def kill_soon(self, fuse: int) -> None:
        self.world.kernel.fuse = fuse

    @rule()
    def kill(self) -> None:
        self.world.kill_agent()

    @rule()
    def start_agent(self) -> None:
        self.world.start_agent()

    @rule(seconds=st.floats(0.0, 40.0))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.agent_ticks()

    # The channel

    @rule(limit=limits)
    def agent_writes(self, limit: int) -> None:
        self.world.agent_writes(limit)

    @rule(limit=limits)
    def host_reads(self, limit: int) -> None:
        self.world.host_reads(limit)

    @rule(limit=limits)
    def agent_reads(self, limit: int) -> None:
        self.world.agent_reads(limit)

    # The host

    @rule(first=st.integers(0, 60), anywhere=counts)
    def goal(self, first: int, anywhere: int) -> None:
        self.world.aim((0, first), (ANY_NODE, anywhere))

    @rule(anywhere=counts, is_sweep=st.booleans())
    def leave_reports_unread(self, anywhere: int, is_sweep: bool) -> None:
        """Let the agent send reports that the host does not yet look at."""
        self.world.run(1.0)
        if is_sweep:
            self.world.say(Sweep())
        else:
            self.world.aim((ANY_NODE, anywhere))
        self.world.host_reads()
        self.world.agent_reads()
        self.world.agent_ticks()
        self.world.agent_writes()

    @rule()
    def sweep(self) -> None:
        self.world.say(Sweep())

    @rule(every=st.sampled_from([None, 5.0]), blocks=st.sampled_from([None, 10]))
    def set_sweeps(self, every: float | None, blocks: int | None) -> None:
        self.world.say(SetSweeps(every, None if blocks is None else blocks << 21))

    @rule()
    def compact(self) -> None:
        self.world.say(Compact())

    @rule()
    def host_goes(self) -> None:
        self.world.stop_host()

    @rule()
    def host_comes(self) -> None:
        if not self.world._told:
            self.world.start_host()

    # Everything at once

    @rule(seconds=st.floats(0.0, 3.0))
    def run_on(self, seconds: float) -> None:
        self.world.run(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.kernel.verify()

    def teardown(self) -> None:
        """When everything works again, both books agree with the kernel's."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.kernel.fuse = None
        if not world._told:
            world.start_host()
        world.kernel.unmap_huge()
        world.start_agent()
        world.run(100.0)
        assert world.ledger == world.isolated
        world.say(SetSweeps())
        world.aim()
        world.run(100.0)
        assert world.isolated == set()
        assert not world.kernel.is_claimed()
        world.kernel.verify()


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def kill_and_succeed(world: World) -> None:
    world.kill_agent()
    world.start_agent()


def squeeze(world: World) -> None:
    """Let the guest use everything, and what the agent gives back for it as well."""
    for _ in range(2):
        world.kernel.use(len(world.kernel.in_state(FREE)))
        world.now += 1.0
        world.agent_ticks()
    world.kernel.use(len(world.kernel.in_state(FREE)))


def lower_the_goal(world: World) -> None:
    world.aim()
    world.to_agent += world.host.output if world.host is not None else b""
    if world.host is not None:
        world.host.output.clear()
    world.agent_reads()
    world.kernel.use(len(world.kernel.in_state(FREE)))


def restart_host(world: World) -> None:
    """The host is back so soon that the agent has not seen it go."""
    if world.host is not None:
        agent, world.session = world.session, None
        world.stop_host()
        world.start_host()
        world.session = agent
        world.to_agent += world.host.output
        world.host.output.clear()


def ask_anew(world: World) -> None:
    """The host wants another hello, and goes on with the session until it comes."""
    if world.host is not None and world._told:
        world.host.send(HelloRequest())
        world.to_agent += world.host.output
        world.host.output.clear()
        world.agent_reads()


def wait(world: World) -> None:
    world.now += 0.5
    world.agent_ticks()


DISRUPTIONS: dict[str, Callable[[World], object]] = {
    "kill": kill_and_succeed,
    "squeeze": squeeze,
    "lower": lower_the_goal,
    "stop host": World.stop_host,
    "start host": lambda world: None if world._told else world.start_host(),
    "restart host": restart_host,
    "ask anew": ask_anew,
    "wait": wait,
    "write": World.agent_writes,
    "read some": lambda world: world.host_reads(700),
    "read": World.host_reads,
    "hear": World.agent_reads,
    "huge": lambda world: world.kernel.map_huge(5),
    "offline": lambda world: world.kernel.offline(sorted(world.isolated)[:3]),
}


@settings(max_examples=250, deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(DISRUPTIONS)), min_size=1, max_size=8),
    held=st.sampled_from([0, 40]),
    is_sweep=st.booleans(),
    seed=st.integers(0, 5),
)
def test_reports_that_the_host_has_not_looked_at(
    steps: list[str], held: int, is_sweep: bool, seed: int
) -> None:
    """Blocks that are reported are not given back, whatever befalls the agent or the channel."""
    world = World(FakeKernel.of(100, seed=seed))
    world.run()
    world.aim((ANY_NODE, held))
    world.run()
    world.say(Sweep()) if is_sweep else world.aim((ANY_NODE, held + 40))
    world.host_reads()
    world.agent_reads()
    world.agent_writes()
    for step in [*steps, "squeeze"]:
        DISRUPTIONS[step](world)
    world.host_reads()
    world.run(3.0)
    world.kernel.verify()

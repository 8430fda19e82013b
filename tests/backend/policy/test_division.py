"""Who is asked for what: the agent first, the kernel's balloon for what the agent does not give."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.policy.division import (
    GRACE_SECONDS,
    MAX_SETBACKS,
    PATIENCE_SECONDS,
    AgentView,
    Division,
    node_goals,
)
from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, NodeGoal

MIB = 1 << 20
PAGE = 4096
LATER = PATIENCE_SECONDS + 0.001
THERE = AgentView(is_usable=True)


class Story:
    """A division whose agent does what the test says."""

    def __init__(self, *, view: AgentView = THERE) -> None:
        self.now = 100.0
        self.division = Division()
        self.view = view
        self.division.see(view, self.now)

    def want(self, size_bytes: int) -> None:
        self.division.want(size_bytes, self.now)

    def agent(self, **changes: object) -> None:
        self.view = replace(self.view, **changes)  # type: ignore[arg-type]
        self.division.see(self.view, self.now)

    def holds(self, size_bytes: int, **changes: object) -> None:
        self.agent(held_bytes=size_bytes, **changes)

    def wait(self, seconds: float) -> None:
        """Let time pass as the daemon does: `tick` is called when it is due."""
        end = self.now + seconds
        while self.division.deadline is not None and self.division.deadline <= end:
            self.now = self.division.deadline
            self.division.tick(self.now)
        self.now = end

    @property
    def shares(self) -> tuple[int, int]:
        """What agent and kernel are asked for, in MiB."""
        return self.division.goal_bytes // MIB, self.division.kernel_bytes // MIB


def test_whole_blocks_go_through_the_agent_and_the_rest_through_the_kernel() -> None:
    story = Story()
    story.want(64 * MIB + BLOCK_BYTES - PAGE)
    assert story.division.goal_bytes == 64 * MIB
    assert story.division.kernel_bytes == BLOCK_BYTES - PAGE
    story.holds(64 * MIB, has_settled=True)
    assert story.division.kernel_bytes == BLOCK_BYTES - PAGE
    assert story.division.deadline is None


def test_without_an_agent_all_goes_through_the_kernel() -> None:
    story = Story(view=AgentView())
    story.want(64 * MIB)
    assert story.division.kernel_bytes == 64 * MIB
    assert story.division.deadline is None


def test_what_an_agent_cannot_give_goes_to_the_kernel_at_once_if_it_says_so() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB, has_settled=True)
    story.agent()
    assert story.shares == (64, 24)


def test_an_agent_that_stands_still_is_given_up_in_time_but_not_one_that_moves() -> None:
    story = Story()
    story.want(64 * MIB)
    for held in range(2, 40, 2):
        story.wait(0.9 * PATIENCE_SECONDS)
        story.holds(held * MIB)
        assert story.shares == (64, 0)
    story.wait(LATER)
    assert story.shares == (64, 26)


@pytest.mark.parametrize(
    "antics",
    [
        pytest.param([{"held_bytes": 42 * MIB}, {"held_bytes": 40 * MIB}], id="takes and lets go"),
        pytest.param([{"is_usable": False}, {"is_usable": True}], id="comes and goes"),
        pytest.param(
            [{"is_usable": False, "held_bytes": 0}, {"is_usable": True}, {"held_bytes": 40 * MIB}],
            id="begins anew",
        ),
        pytest.param([{"has_settled": True, "is_usable": False}], id="is of no use"),
    ],
)
@pytest.mark.parametrize("is_after_takeover", [False, True])
def test_no_antics_of_an_agent_make_it_relied_on_for_ever(
    antics: list[dict[str, object]], *, is_after_takeover: bool
) -> None:
    story = Story()
    if is_after_takeover:
        story.division.resume(64 * MIB, 64 * MIB, is_yielding=False, now=story.now)
    else:
        story.want(64 * MIB)
    story.holds(40 * MIB)
    rounds = 0
    while story.shares == (64, 0):
        for changes in antics:
            story.agent(**changes)
        story.wait(0.9 * PATIENCE_SECONDS)
        rounds += 1
        assert rounds <= MAX_SETBACKS + 3
    assert story.division.kernel_bytes >= 64 * MIB - 42 * MIB


def test_an_operator_who_insists_again_and_again_puts_nothing_off() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB)
    for _ in range(3):
        story.wait(0.4 * PATIENCE_SECONDS)
        story.division.insist(story.now)
    assert story.shares == (64, 24)


def test_an_agent_that_tells_again_what_it_holds_is_not_overtaken() -> None:
    """The device has forgotten all, and much is to be told: it takes longer than the patience."""
    story = Story()
    story.want(64 * MIB)
    story.holds(64 * MIB)
    story.agent(is_usable=False, held_bytes=0)
    story.division.reboot(story.now)
    story.agent(is_usable=True)
    for held in range(4, 68, 4):
        story.wait(0.9 * PATIENCE_SECONDS)
        story.holds(held * MIB)
        assert story.shares == (64, 0)
    assert story.division.deadline is None


def test_what_comes_late_is_handed_back_by_the_kernel() -> None:
    story = Story()
    story.want(64 * MIB)
    story.wait(LATER)
    assert story.shares == (64, 64)
    story.holds(10 * MIB)
    assert story.shares == (64, 54)
    story.wait(LATER)
    assert story.shares == (64, 54)
    story.holds(64 * MIB)
    assert story.shares == (64, 0)


def test_an_agent_that_arrives_is_not_paid_in_advance() -> None:
    story = Story(view=AgentView())
    story.want(64 * MIB)
    story.agent(is_usable=True)
    assert story.shares == (64, 64)
    story.holds(30 * MIB)
    assert story.shares == (64, 34)


def test_a_further_demand_goes_to_the_agent_and_leaves_the_kernel_s_share() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB, has_settled=True)
    story.agent()
    story.agent(has_settled=False)
    story.want(80 * MIB)
    assert story.shares == (80, 24)
    story.wait(LATER)
    assert story.shares == (80, 40)


def test_the_kernel_hands_back_first() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB, has_settled=True)
    story.agent()
    story.want(50 * MIB)
    assert story.shares == (50, 10)
    story.want(30 * MIB)
    assert story.shares == (30, 0)
    story.holds(30 * MIB)
    story.want(0)
    assert story.shares == (0, 0)


def test_what_a_guest_needed_is_not_taken_by_the_kernel_instead() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(64 * MIB, has_settled=True)
    story.holds(20 * MIB, has_settled=False)
    story.agent(pressure_releases=1, is_pressed=True)
    assert story.division.yielded_bytes == 44 * MIB
    story.agent(is_pressed=False, has_settled=True)
    story.wait(10 * LATER)
    assert story.shares == (64, 0)
    story.holds(64 * MIB)
    assert not story.division.is_yielding


@pytest.mark.parametrize("how", ["repeat", "more"])
def test_an_operator_who_insists_gets_it_from_the_kernel(how: str) -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(64 * MIB)
    story.holds(20 * MIB, pressure_releases=1)
    if how == "repeat":
        story.division.insist(story.now)
    else:
        story.want(66 * MIB)
    assert story.division.kernel_bytes == 0
    story.wait(LATER)
    assert story.division.kernel_bytes == story.division.wanted_bytes - 20 * MIB


def test_the_kernel_waits_while_the_guest_is_short_of_memory() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB, is_pressed=True, has_settled=True)
    story.agent()
    story.wait(5 * LATER)
    assert story.shares == (64, 0)
    story.agent(is_pressed=False, has_settled=False)
    story.wait(LATER)
    assert story.shares == (64, 24)


def test_an_agent_that_has_gone_is_waited_for_then_its_blocks_count() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(40 * MIB)
    story.agent(is_usable=False)
    story.wait(0.9 * GRACE_SECONDS)
    assert story.shares == (64, 0)
    story.wait(GRACE_SECONDS)
    assert story.shares == (64, 24)


def test_an_agent_that_comes_back_in_time_leaves_all_as_it_was() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(64 * MIB)
    story.agent(is_usable=False, held_bytes=0)
    story.wait(0.5 * GRACE_SECONDS)
    story.agent(is_usable=True)
    story.holds(64 * MIB)
    story.wait(LATER)
    assert story.shares == (64, 0)


def test_a_guest_that_starts_anew_owes_everything() -> None:
    story = Story()
    story.want(64 * MIB)
    story.holds(64 * MIB)
    story.holds(20 * MIB, pressure_releases=1)
    story.agent(is_usable=False, held_bytes=0)
    story.division.reboot(story.now)
    assert not story.division.is_yielding
    story.wait(GRACE_SECONDS + 1)
    assert story.shares == (64, 64)


def test_a_successor_goes_on_and_waits_for_the_agent() -> None:
    story = Story(view=AgentView())
    story.division.resume(64 * MIB, 64 * MIB, is_yielding=False, now=story.now)
    story.want(64 * MIB)
    assert story.shares == (64, 0)
    story.holds(40 * MIB, is_usable=True)
    assert story.shares == (64, 0)
    story.wait(LATER)
    assert story.shares == (64, 24)


def test_an_agent_that_tells_a_successor_what_it_holds_makes_progress() -> None:
    story = Story(view=AgentView())
    story.division.resume(64 * MIB, 64 * MIB, is_yielding=False, now=story.now)
    story.holds(40 * MIB, is_usable=True)
    for known in range(4, 44, 4):
        story.wait(0.9 * PATIENCE_SECONDS)
        story.agent(known_bytes=known * MIB)
        assert story.shares == (64, 0)
    story.wait(LATER)
    assert story.shares == (64, 24)


def test_what_an_agent_gave_up_for_a_predecessor_is_no_news_to_a_successor() -> None:
    story = Story(view=AgentView())
    before = AgentView(held_bytes=40 * MIB, pressure_releases=3)
    story.division.resume(64 * MIB, 64 * MIB, is_yielding=False, now=story.now, view=before)
    story.division.see(before, story.now)
    assert not story.division.is_yielding
    story.division.see(replace(before, is_usable=True, pressure_releases=4), story.now)
    assert story.division.is_yielding


def test_less_than_a_block_is_the_kernel_s() -> None:
    story = Story()
    story.want(BLOCK_BYTES - PAGE)
    assert (story.division.goal_bytes, story.division.kernel_bytes) == (0, BLOCK_BYTES - PAGE)


VIEW = st.builds(
    AgentView,
    is_usable=st.booleans(),
    held_bytes=st.integers(0, 40).map(lambda blocks: blocks * BLOCK_BYTES),
    has_settled=st.booleans(),
    pressure_releases=st.integers(0, 5),
    is_pressed=st.booleans(),
)
EVENT = st.one_of(
    st.tuples(st.just("want"), st.integers(0, 80 * MIB // PAGE).map(lambda pages: pages * PAGE)),
    st.tuples(st.just("see"), VIEW),
    st.tuples(st.sampled_from(["tick", "insist", "reboot"]), st.none()),
)


@given(events=st.lists(st.tuples(EVENT, st.floats(0, 20)), max_size=40), last=VIEW)
@settings(deadline=None)
def test_whatever_happens_the_shares_add_up(
    events: list[tuple[tuple[str, object], float]], last: AgentView
) -> None:
    division, now, view = Division(), 0.0, AgentView()
    for (kind, value), pause in events:
        now += pause
        if kind == "want":
            assert isinstance(value, int)
            division.want(value, now)
        elif kind == "see":
            assert isinstance(value, AgentView)
            before = division.kernel_bytes
            division.see(value, now)
            # Hearing of fewer blocks alone never makes the kernel take more.
            if not value.has_settled:
                assert division.kernel_bytes <= before
            view = value
        elif kind == "tick":
            division.tick(now)
        elif kind == "insist":
            division.insist(now)
        else:
            division.reboot(now)
        check_shares(division, view)
    # Once nothing happens any more and the guest has what it needs, all that is wanted is taken.
    division.see(replace(last, is_pressed=False, pressure_releases=10), now)
    division.insist(now)
    while division.deadline is not None:
        division.tick(division.deadline)
    held = min(last.held_bytes, division.goal_bytes)
    assert held + division.kernel_bytes >= division.wanted_bytes


def check_shares(division: Division, view: AgentView) -> None:
    assert 0 <= division.relied_bytes <= division.goal_bytes <= division.wanted_bytes
    assert division.relied_bytes % BLOCK_BYTES == 0
    assert division.wanted_bytes - division.goal_bytes < BLOCK_BYTES
    assert division.kernel_bytes + division.relied_bytes == division.wanted_bytes
    # A block that the agent holds is never wanted from the kernel as well.
    held = min(view.held_bytes, division.goal_bytes)
    assert division.kernel_bytes + held <= division.wanted_bytes
    if held < division.relied_bytes and not division.is_yielding:
        assert division.deadline is not None


# Nodes


def test_goals_of_nodes_add_up_to_the_whole() -> None:
    assert node_goals(64 * MIB, {}) == (NodeGoal(ANY_NODE, 64 * MIB),)
    assert node_goals(64 * MIB, {1: 20 * MIB + 5, 0: 10 * MIB}) == (
        NodeGoal(0, 10 * MIB),
        NodeGoal(1, 20 * MIB),
        NodeGoal(ANY_NODE, 34 * MIB),
    )
    assert node_goals(16 * MIB, {0: 10 * MIB, 1: 20 * MIB}) == (
        NodeGoal(0, 10 * MIB),
        NodeGoal(1, 6 * MIB),
        NodeGoal(ANY_NODE, 0),
    )

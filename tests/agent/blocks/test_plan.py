from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_agent.blocks.plan import from_neediest, goal_blocks, to_give, to_take
from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, BlocksGoal, NodeGoal

amounts = st.integers(0, 50)
nodes = st.dictionaries(st.integers(0, 3), amounts)
goals = st.dictionaries(st.sampled_from([ANY_NODE, 0, 1, 2]), amounts)


def test_goals_are_rounded_down_to_whole_blocks() -> None:
    goal = BlocksGoal((NodeGoal(0, 3 * BLOCK_BYTES - 1), NodeGoal(ANY_NODE, 100)))
    assert goal_blocks(goal) == {0: 2, ANY_NODE: 0}


@pytest.mark.parametrize(
    ("goal", "held", "givable", "most", "expected"),
    [
        ({0: 10, 1: 5}, {}, {0: 100, 1: 100}, 100, {0: 10, 1: 5}),
        ({0: 10, 1: 5}, {0: 10, 1: 2}, {0: 100, 1: 100}, 100, {1: 3}),
        ({0: 10}, {}, {0: 4, 1: 100}, 100, {0: 4}),
        ({ANY_NODE: 30}, {}, {0: 100, 1: 60}, 100, {0: 30}),
        ({ANY_NODE: 60}, {}, {0: 100, 1: 60}, 100, {0: 50, 1: 10}),
        ({0: 10, ANY_NODE: 20}, {1: 20}, {0: 50, 1: 50}, 100, {0: 10}),
        ({ANY_NODE: 60}, {}, {0: 100, 1: 100}, 7, {0: 4, 1: 3}),
        ({ANY_NODE: 60}, {}, {0: 1, 1: 2}, 100, {0: 1, 1: 2}),
        ({ANY_NODE: 5}, {0: 9}, {0: 100}, 100, {}),
        ({ANY_NODE: 5}, {}, {}, 100, {}),
    ],
)
def test_taking(
    goal: dict[int, int],
    held: dict[int, int],
    givable: dict[int, int],
    most: int,
    expected: dict[int, int],
) -> None:
    assert to_take(goal, held, givable, most) == expected


@given(goals, nodes, nodes, amounts)
def test_no_more_is_taken_than_is_wanted_or_there(
    goal: dict[int, int], held: dict[int, int], givable: dict[int, int], most: int
) -> None:
    taken = to_take(goal, held, givable, most)
    assert sum(taken.values()) <= min(most, max(0, sum(goal.values()) - sum(held.values())))
    assert all(0 < count <= givable[node] for node, count in taken.items())


@given(goals, nodes, nodes)
def test_giving_leaves_no_more_than_the_goal(
    goal: dict[int, int], held: dict[int, int], free: dict[int, int]
) -> None:
    given_back = to_give(goal, held, free)
    left = {node: count - given_back.get(node, 0) for node, count in held.items()}
    assert all(count >= 0 for count in left.values())
    beyond = sum(max(0, count - goal.get(node, 0)) for node, count in left.items())
    assert beyond <= goal.get(ANY_NODE, 0)
    assert sum(left.values()) <= sum(goal.values())
    if given_back:
        assert beyond == goal.get(ANY_NODE, 0), "not one block more than necessary"


def test_the_neediest_node_is_served_first() -> None:
    assert from_neediest({0: 10, 1: 10, 2: 10}, {0: 500, 1: 3, 2: 40}, 15) == {1: 10, 2: 5}
    assert to_give({ANY_NODE: 5}, {0: 10, 1: 10}, {0: 1, 1: 2}) == {0: 10, 1: 5}

"""Which node contributes how much: a goal divided among nodes. Pure arithmetic, in blocks."""

from __future__ import annotations

from collections.abc import Mapping

from ballast_protocol.guest_blocks import ANY_NODE, BLOCK_BYTES, BlocksGoal


def goal_blocks(goal: BlocksGoal) -> dict[int, int]:
    """Return a goal in whole blocks, by node or `ANY_NODE`."""
    return {node: size // BLOCK_BYTES for node, size in goal.goals}


def to_take(
    goal: Mapping[int, int], held: Mapping[int, int], givable: Mapping[int, int], most: int
) -> dict[int, int]:
    """Return how many blocks to take from each node, `most` in all.

    Args:
        goal: What to hold, by node, and anywhere in addition.
        held: What is held, by node.
        givable: How many blocks each node can give.
        most: Bound of the sum.
    """
    left = max(0, min(most, sum(goal.values()) - sum(held.values())))
    taken: dict[int, int] = {}
    for node in sorted(goal.keys() & givable.keys()):
        taken[node] = max(0, min(goal[node] - held.get(node, 0), givable[node], left))
        left -= taken[node]
    # What nodes hold beyond their own goals counts for the part that may be anywhere.
    surplus = sum(max(0, count - goal.get(node, 0)) for node, count in held.items())
    rest = {node: count - taken.get(node, 0) for node, count in givable.items()}
    for node, count in _leveled(rest, min(left, goal.get(ANY_NODE, 0) - surplus)).items():
        taken[node] = taken.get(node, 0) + count
    return {node: count for node, count in taken.items() if count}


def _leveled(givable: Mapping[int, int], count: int) -> dict[int, int]:
    """Return how to take `count` so that what the nodes have left is as equal as can be."""
    taken = dict.fromkeys(givable, 0)
    count = min(count, sum(givable.values()))
    if count <= 0:
        return taken
    low, high = 0, max(givable.values())
    while low < high:
        level = (low + high) // 2
        if sum(max(0, have - level) for have in givable.values()) <= count:
            high = level
        else:
            low = level + 1
    for node, have in givable.items():
        taken[node] = max(0, have - low)
    left = count - sum(taken.values())
    for node in sorted(givable, key=lambda node: taken[node] - givable[node])[:left]:
        taken[node] += 1
    return taken


def to_give(
    goal: Mapping[int, int], held: Mapping[int, int], free: Mapping[int, int]
) -> dict[int, int]:
    """Return how many blocks each node gets back, so that no more than the goal is held.

    Args:
        goal: As for `to_take`.
        held: What is held, by node.
        free: Free memory of each node, in any unit: the node that has the least is served first.
    """
    beyond = {node: max(0, count - goal.get(node, 0)) for node, count in held.items()}
    excess = sum(beyond.values()) - goal.get(ANY_NODE, 0)
    return from_neediest(beyond, free, excess)


def from_neediest(held: Mapping[int, int], free: Mapping[int, int], count: int) -> dict[int, int]:
    """Return `count` blocks divided among the nodes, the one with the least free memory first."""
    given = {}
    for node in sorted(held, key=lambda node: (free.get(node, 0), node)):
        share = max(0, min(held[node], count))
        if share:
            given[node] = share
            count -= share
    return given

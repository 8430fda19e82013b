"""A worker dies at any point of its exchange with the agent, and the next one goes on at once.

Both halves of the trade are the real ones, the guest's kernel is a model, and the channel hands on
bytes one piece at a time. What the dead worker had read is lost, and what it had not written; what
is in the channel stays there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ballast_protocol.guest_blocks import MAX_REPORT_BLOCKS
from support.block_trade import Guest, guest

GOAL_BLOCKS = MAX_REPORT_BLOCKS + 20
"""Takes two reports, which are under way at a time."""
SOON_SECONDS = 0.5
"""Shorter than any pause in the protocol: nobody has waited for a time-out."""


def exchange(world: Guest, size: int) -> Iterator[None]:
    """Hand bytes on in pieces of `size` until the goal is reached; pause after each."""
    while len(world.there.held) < GOAL_BLOCKS or not world.there.blocks.has_settled:
        world.agent_writes(size)
        yield
        world.host_hears(size)
        yield
        world.host_writes(size)
        yield
        world.agent_reads(size)
        world.agent_ticks()
        yield


def dies_after(steps: int, size: int, *, is_slow: bool) -> bool:
    """Replace the worker after so many steps; tell whether it had anything left to do.

    Args:
        steps: When.
        size: Of the pieces in which bytes are handed on.
        is_slow: The agent comes to read only after the next worker has said its first words.
    """
    with guest(1, blocks=200) as world:
        world.run()
        world.there.aim(GOAL_BLOCKS)
        left = sum(1 for _ in zip(range(steps), exchange(world, size), strict=False))
        world.next_worker()
        if is_slow:
            world.agent_writes()
            world.host_reads()
        world.there.aim(GOAL_BLOCKS)
        world.run(SOON_SECONDS)
        assert len(world.there.held) == GOAL_BLOCKS, f"after {steps} steps"
        assert world.there.held == world.isolated
        assert world.there.blocks.has_settled
        world.kernel.verify()
    return left == steps


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("size", [1 << 30, 400, 100])
def test_the_next_worker_goes_on_at_once_whenever_the_first_dies(size: int, is_slow: bool) -> None:
    steps = 0
    while dies_after(steps, size, is_slow=is_slow):
        steps += 1
    assert steps > 8

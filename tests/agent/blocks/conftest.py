from __future__ import annotations

import pytest

from support.block_world import World
from support.fake_kernel import FakeKernel


@pytest.fixture
def world() -> World:
    """A guest with 400 blocks of free memory, its agent and its host at rest."""
    world = World(FakeKernel.of(400))
    world.run()
    return world

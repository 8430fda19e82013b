from __future__ import annotations

import pytest

from ballast_agent.blocks.kernel import PoolCounts
from ballast_agent.blocks.pool import Pool
from ballast_protocol.errors import OperatorError
from support.fake_kernel import OFFLINE, POOL, FakeKernel


def test_what_goes_offline_before_it_is_reserved_is_not_taken() -> None:
    kernel = FakeKernel.of(50)
    pool = Pool(kernel)
    first = pool.take(0, 10)
    kernel.dissolving = 7
    second = pool.take(0, 20)
    assert len(kernel.in_state(OFFLINE)) == 7
    assert len(first) == 10
    # The kernel does not care which of its pages is reserved: one held for long may be among them.
    assert set(pool.blocks) == {block.pfn for block in kernel.in_state(POOL)}
    assert len(pool.blocks) == 23
    assert set(second) <= set(pool.blocks)
    assert pool.is_whole()


def test_what_was_held_and_has_gone_unnoticed_is_noticed_when_blocks_go_back() -> None:
    kernel = FakeKernel.of(50)
    pool = Pool(kernel)
    held = pool.take(0, 20)
    for pfn in held[:3]:
        kernel.replace(pfn)
    assert set(pool.blocks) == set(held)
    pool.give_back({0: 5})
    assert set(pool.blocks) == {block.pfn for block in kernel.in_state(POOL)}
    assert len(pool.blocks) == 15
    assert pool.is_whole()


def test_everything_may_go_offline_before_it_is_reserved() -> None:
    kernel = FakeKernel.of(50)
    pool = Pool(kernel)
    kernel.dissolving = 20
    assert pool.take(0, 20) == []
    assert pool.is_empty
    assert not kernel.is_claimed()


def test_pages_that_are_there_and_cannot_be_reserved_go_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = FakeKernel.of(50)
    pool = Pool(kernel)
    held = pool.take(0, 10)
    reserve = kernel.reserve

    def refuse_more(pages: int) -> None:
        if pages > 10:
            raise OperatorError("somebody else was quicker")
        reserve(pages)

    monkeypatch.setattr(kernel, "reserve", refuse_more)
    with pytest.raises(OperatorError, match="quicker"):
        pool.take(0, 20)
    assert set(pool.blocks) == set(held)
    assert kernel.pool() == PoolCounts(total=10, free=10, reserved=10, surplus=0)

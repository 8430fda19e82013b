"""The scripted front-end against the real daemon: what it plays is what the books then hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ballast.bench.frontend import FIRST_PFN, Frontend, Memory, pack_arrays
from ballast.bench.patterns import PATTERNS
from ballast.bench.ring import FLOOR, OURS, PAGE_BY_PAGE, bench_ring, give_pages
from ballast_images.progress import SilentReporter
from support.backend import backend_at

SIZE = 8 << 20


@pytest.mark.parametrize("depth", [1, 2, 64])
async def test_what_is_played_goes_back_and_comes_again(tmp_path: Path, depth: int) -> None:
    memory = Memory(SIZE)
    memory.populate()
    arrays = pack_arrays(PATTERNS["shuffled"](FIRST_PFN, memory.last_pfn))

    def play() -> None:
        with Frontend(backend.path, memory) as frontend:
            frontend.rings[0].play(arrays, depth)
            assert memory.allocated_bytes == FIRST_PFN * 4096
            assert len(backend.held) == memory.last_pfn - FIRST_PFN
            frontend.write_actual(7)
            assert frontend.read_config().actual == 7
            frontend.rings[1].play(arrays, depth)
            assert backend.held == set()

    async with backend_at(tmp_path / "vhost-user.sock") as backend:
        await asyncio.to_thread(play)
    memory.close()


def test_page_by_page_frees_the_same() -> None:
    memory = Memory(SIZE)
    memory.populate()
    give_pages(memory, PATTERNS["scattered"](FIRST_PFN, memory.last_pfn))
    assert memory.allocated_bytes == FIRST_PFN * 4096
    memory.close()


async def test_the_bench_measures_all_three_beside_each_other() -> None:
    found = await bench_ring(["descending", "single"], SIZE, 64, 2, SilentReporter())
    assert [each.who for each in found] == [FLOOR, PAGE_BY_PAGE, OURS] * 4
    assert {each.freed_bytes for each in found if each.pattern == "descending"} == {SIZE}
    assert all(each.seconds > 0 for each in found)

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_images.guest_files import memtool

KPF_LRU = 5


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def test_runs_are_found_by_their_flag_alone() -> None:
    offline, lru = 1 << memtool.KPF_OFFLINE, 1 << KPF_LRU
    flags = words(0, offline, offline | lru, lru, 0, offline)
    assert list(memtool.runs_with_flag(flags, memtool.KPF_OFFLINE)) == [(1, 2), (5, 1)]
    assert list(memtool.runs_with_flag(flags, KPF_LRU, first_pfn=100)) == [(102, 2)]


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=50), st.integers(0, 63))
def test_runs_are_what_a_loop_over_pages_finds(flags: list[int], bit: int) -> None:
    runs = list(memtool.runs_with_flag(words(*flags), bit))
    found = {pfn for first, count in runs for pfn in range(first, first + count)}
    assert found == {pfn for pfn, value in enumerate(flags) if value >> bit & 1}
    # Neighbours are one run.
    assert all(first + count < following for (first, count), (following, _) in pairwise(runs))


def test_a_run_across_two_reads_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memtool, "FLAGS_CHUNK_BYTES", 16)
    path = tmp_path / "kpageflags"
    set_ = 1 << memtool.KPF_OFFLINE
    path.write_bytes(words(0, set_, set_, 0, set_))
    assert memtool.flagged_pages(memtool.KPF_OFFLINE, str(path)) == [[1, 2], [4, 1]]


def test_fill_verifies_every_byte(capsys: pytest.CaptureFixture[str]) -> None:
    assert memtool.main(["fill", "--bytes", "3000001", "--seed", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "verified_bytes": 3000001,
        "passes": 1,
        "wrong_pages": 0,
        "wrong_offsets": [],
    }


def test_lost_and_swapped_pages_are_wrong() -> None:
    page, size = memtool.PAGE_SIZE, 3 * memtool.BLOCK_SIZE
    region = memtool.Region(size, memtool.Pattern(1))
    region.fill()
    memory = region._memory
    memory[5 * page : 6 * page] = bytes(page)
    first, second = 300 * page, 600 * page
    memory[first : first + page], memory[second : second + page] = (
        memory[second : second + page],
        memory[first : first + page],
    )
    assert region.wrong_pages() == (size, [5 * page, first, second])
    region.close()


@given(st.integers(0, 600), st.integers(0, 600))
def test_no_two_blocks_share_a_page(first: int, second: int) -> None:
    pattern = memtool.Pattern(1)
    pages = [
        {block[at : at + memtool.PAGE_SIZE] for at in range(0, len(block), memtool.PAGE_SIZE)}
        for block in (pattern.block(first), pattern.block(second))
    ]
    assert first == second or pages[0].isdisjoint(pages[1])


def test_the_loop_ends_when_the_file_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = tmp_path / "stop"
    passes = iter(range(3))
    fill = memtool.Region.fill

    def fill_until_stopped(region: memtool.Region) -> None:
        if next(passes) == 2:
            stop.touch()
        fill(region)

    monkeypatch.setattr(memtool.Region, "fill", fill_until_stopped)
    options = ["--bytes", str(1 << 20), "--stop-file", str(stop), "--remap"]
    assert memtool.main(["verify-loop", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passes"] == 2
    assert result["verified_bytes"] == 2 << 20
    assert result["wrong_pages"] == 0


def test_wrong_pages_show_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memtool.Region, "fill", lambda region: None)
    assert memtool.main(["fill", "--bytes", "8192"]) == 1
    assert json.loads(capsys.readouterr().out)["wrong_offsets"] == [0, 4096]


def test_dirty_says_how_much_it_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    assert memtool.main(["dirty", "--bytes", "2000000"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 2000000


def test_meminfo_is_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:        2048 kB\nHugePages_Total:       3\n")
    assert memtool.meminfo(str(path)) == {"MemTotal": 2 << 20, "HugePages_Total": 3}


def test_memory_is_demanded_at_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--bytes", str(3 << 20), "--rate", str(10 << 20)]
    assert memtool.main(["demand", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seconds"] >= 0.3
    assert 0 < result["longest_step_seconds"] <= result["seconds"]
    assert (result["verified_bytes"], result["wrong_pages"]) == (3 << 20, 0)
    assert result["release_seconds"] is None


def test_a_release_lasts_from_the_first_shortage_to_a_smaller_pool() -> None:
    watch = memtool.ReleaseWatch(50)

    def look(available: int, pool: int, now: float) -> None:
        watch.look({"MemAvailable": available, "HugePages_Total": pool}, now)

    for available, pool, now in ((60, 9, 0.0), (60, 8, 1.0), (40, 8, 2.0), (30, 8, 3.0)):
        look(available, pool, now)
        assert watch.seconds is None
    look(80, 4, 3.5)
    assert watch.seconds == 1.5
    look(40, 4, 5.0)
    look(80, 2, 5.25)
    assert watch.seconds == 1.5, "the longest"
    look(40, 0, 6.0)
    look(40, 0, 9.0)
    assert watch.seconds == 1.5, "there is nothing left to be released"

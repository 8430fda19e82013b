from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ballast_images.cache import cache_dir, locked, published, scratch, write_whole
from ballast_images.progress import Advance, SilentReporter
from ballast_protocol.errors import OperatorError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_variable_moves_the_cache(cache: Path) -> None:
    assert cache_dir() == cache
    assert cache.is_dir()


def test_a_cache_that_cannot_be_made_is_the_operators_to_cure(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(OperatorError, match="cannot make") as raised:
        cache_dir()
    assert "BALLAST_CACHE" in raised.value.hint


def test_what_ends_well_is_published_whole(cache: Path) -> None:
    target = cache / "things" / "one"
    for text in ("old", "new"):
        with published(target) as draft:
            (draft / "file").write_text(text)
    assert (target / "file").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_what_fails_leaves_the_old_state(cache: Path) -> None:
    target = cache / "things" / "one"
    with published(target) as draft:
        (draft / "file").write_text("old")
    with suppress(KeyboardInterrupt), published(target) as draft:
        (draft / "file").write_text("half")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["one"]


def test_drafts_of_a_killed_process_go_with_the_next_lock(cache: Path) -> None:
    with scratch(cache / "trees") as draft:
        (draft / "file").touch()
        with locked(SilentReporter()):
            assert not draft.exists()


class NotingReporter:
    """Keeps what was shown, and can end what is waited for."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.steps: list[str] = []
        self._holder = holder

    @contextmanager
    def step(self, what: str) -> Iterator[Advance]:
        self.steps.append(what)
        self._holder.kill()
        yield lambda _done: None


HOLDER = """
import sys
from ballast_images.cache import locked
from ballast_images.progress import SilentReporter
with locked(SilentReporter()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_for_the_first_and_says_so(cache: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        reporter = NotingReporter(holder)
        # The lock comes free because its holder is killed, without any tidying up of its own.
        with locked(reporter):
            assert reporter.steps == ["Waiting for another process that is filling the cache"]


def test_a_file_is_written_whole_with_its_mode(cache: Path) -> None:
    path = cache / "bin" / "program"
    write_whole(path, b"1", mode=0o755)
    write_whole(path, b"2", mode=0o755)
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]

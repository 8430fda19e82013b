from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ballast_images import provision as provision_module
from ballast_images.apt import Package
from ballast_images.progress import SilentReporter
from ballast_images.provision import cached_tree, provision


class FakeApt:
    """Unpacks packages that hold one file, named after the package and containing its version."""

    made = 0
    fails = False

    def __init__(self, directory: Path, reporter: SilentReporter) -> None:
        FakeApt.made += 1

    def update(self, *, refresh: bool) -> None:
        pass

    def unpack(self, packages: Sequence[Package], root: Path, what: str) -> dict[str, str]:
        root.mkdir()
        for package in packages:
            (root / package.name).write_text(package.version)
        if FakeApt.fails:
            raise ConnectionError
        return {package.pinned: package.version * 3 for package in packages}


@pytest.fixture(autouse=True)
def fake_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path))
    monkeypatch.setattr(provision_module, "PrivateApt", FakeApt)
    monkeypatch.setattr(FakeApt, "made", 0)


def make(version: str, *, refresh: bool = False) -> Path:
    packages = [Package("a", version, 1)]
    tree = provision("things", lambda _: packages, "things", SilentReporter(), refresh=refresh)
    return tree.root


def test_the_second_time_apt_is_not_touched() -> None:
    assert cached_tree("things") is None
    root = make("1")
    assert (root / "a").read_text() == "1"
    assert make("2") == root
    assert FakeApt.made == 1


def test_a_refresh_makes_a_new_tree_beside_the_old_one() -> None:
    old = make("1")
    new = make("2", refresh=True)
    assert ((old / "a").read_text(), (new / "a").read_text()) == ("1", "2")
    tree = cached_tree("things")
    assert tree is not None
    assert tree.root == new


def test_a_refresh_that_finds_nothing_new_leaves_the_tree_in_place() -> None:
    root = make("1")
    (root / "in use").touch()
    assert make("1", refresh=True) == root
    assert (root / "in use").exists()


def test_a_failure_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = make("1")
    monkeypatch.setattr(FakeApt, "fails", True)
    with pytest.raises(ConnectionError):
        make("2", refresh=True)
    assert make("3") == root
    assert list((tmp_path / "trees").iterdir()) == [root.parent]


def test_a_tree_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    root = make("1")
    root.rename(tmp_path / "elsewhere")
    assert (make("1") / "a").read_text() == "1"
    assert FakeApt.made == 2


def test_a_damaged_lock_file_is_made_anew(tmp_path: Path) -> None:
    make("1")
    (tmp_path / "things.lock.json").write_text("{")
    assert (make("2") / "a").read_text() == "2"

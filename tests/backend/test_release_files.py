from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from release_files import ReleaseFiles


def initialized(root: Path, target: str, version: str = "standard") -> dict[str, Any]:
    data: dict[str, Any] = {"shared_data": {}, "force_include": {}}
    hook: Any = ReleaseFiles(str(root), {}, None, None, str(root), target)  # type: ignore[arg-type]
    hook.initialize(version, data)
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("man/ballast.1", "completion/zsh/_ballast"):
        path = tmp_path / "build" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return tmp_path


def test_a_wheel_has_them_where_systems_look(root: Path) -> None:
    assert initialized(root, "wheel")["shared_data"] == {
        f"{root}/build/man/ballast.1": "share/man/man1/ballast.1",
        f"{root}/build/completion/zsh/_ballast": "share/zsh/site-functions/_ballast",
    }


def test_a_source_archive_has_them_where_a_wheel_is_made_from_it(root: Path) -> None:
    included = initialized(root, "sdist")["force_include"]
    assert included[f"{root}/build/man/ballast.1"] == "build/man/ballast.1"


def test_without_them_nothing_is_added(root: Path, tmp_path: Path) -> None:
    assert not any(initialized(tmp_path / "empty", "wheel").values())
    assert not any(initialized(root, "wheel", "editable").values())

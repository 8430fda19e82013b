from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ballast_images import zipapp


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent of two packages, in place of the real one."""
    for name, text in (
        ("toy_protocol/__init__.py", "WORD = 'hello'\n"),
        ("ballast_agent/__init__.py", ""),
        (
            "ballast_agent/__main__.py",
            "import sys\nfrom toy_protocol import WORD\n"
            "def main():\n    print(WORD, *sys.argv[1:])\n    return 3\n",
        ),
        ("ballast_agent/data.txt", "not code"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(
        zipapp, "find_spec", lambda name: FakeSpec(str(tmp_path / name / "__init__.py"))
    )
    monkeypatch.setattr(zipapp, "PACKAGES", ("ballast_agent", "toy_protocol"))
    return tmp_path


class FakeSpec:
    def __init__(self, origin: str) -> None:
        self.origin = origin


def test_the_archive_runs_with_the_python_that_is_there(packages: Path, tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    data = zipapp.agent_archive(zipapp.agent_sources())
    assert data is not None
    path.write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-I", path, "run"], capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr, result.returncode) == ("hello run\n", "", 3)
    assert data.startswith(b"#!/usr/bin/env python3\n")


def test_the_same_sources_give_the_same_bytes(packages: Path) -> None:
    first = zipapp.agent_archive(zipapp.agent_sources())
    for path in packages.rglob("*.py"):
        path.touch()
        path.chmod(0o600)
    assert zipapp.agent_archive(zipapp.agent_sources()) == first


def test_only_code_is_packed(packages: Path) -> None:
    data = zipapp.agent_archive(zipapp.agent_sources())
    assert data is not None
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == [
        "__main__.py",
        "ballast_agent/__init__.py",
        "ballast_agent/__main__.py",
        "toy_protocol/__init__.py",
    ]


def test_the_real_agent_packs_with_the_protocol() -> None:
    names = zipapp.agent_sources()
    assert "ballast_agent/__main__.py" in names
    assert "ballast_protocol/errors.py" in names


def test_without_the_agent_there_is_no_archive() -> None:
    assert zipapp.agent_archive({"ballast_protocol/errors.py": b""}) is None

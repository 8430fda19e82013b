from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def runtime_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where VMs are looked for, with a terminal that is wide enough for tables."""
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path

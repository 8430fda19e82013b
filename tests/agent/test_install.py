from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ballast_agent.install import (
    OPENRC,
    PROGRAM,
    SCRIPT,
    SYSTEMD,
    UNIT,
    find_init,
    service_text,
)
from ballast_images.zipapp import agent_archive, agent_sources
from ballast_protocol.errors import OperatorError


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = agent_archive(agent_sources())
    assert packed is not None
    path = tmp_path_factory.mktemp("agent") / "ballast-agent.pyz"
    path.write_bytes(packed)
    return path


def run(agent: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(agent), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("init", "file"), [(SYSTEMD, UNIT), (OPENRC, SCRIPT)])
def test_the_packed_agent_installs_and_removes_itself(
    agent: Path, init: str, file: str, tmp_path: Path
) -> None:
    options = ("--root", str(tmp_path), "--no-start", "--init", init)
    done = run(agent, "install", *options, "--", "--reserve", "512M")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / PROGRAM).read_bytes() == agent.read_bytes()
    text = (tmp_path / file).read_text()
    assert f"/{PROGRAM} run --reserve 512M" in text
    assert bool((tmp_path / file).stat().st_mode & 0o111) is (init == OPENRC)
    assert run(tmp_path / PROGRAM, "--version").returncode == 0
    # Again, as for a new version.
    assert run(agent, "install", *options).returncode == 0

    done = run(agent, "uninstall", "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / file).exists()
    assert not (tmp_path / PROGRAM).exists()


def test_the_service_manager_that_runs_is_found(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="neither systemd nor OpenRC"):
        find_init(tmp_path)
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/openrc-run").touch()
    assert find_init(tmp_path) == OPENRC
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert find_init(tmp_path) == SYSTEMD


def test_words_are_quoted_for_whoever_reads_them() -> None:
    assert "run '--port=a b%%c'" in service_text(SYSTEMD, ["--port=a b%c"])
    assert "run '--port=a b%c'" in service_text(OPENRC, ["--port=a b%c"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_has_nothing_to_complain_of(tmp_path: Path) -> None:
    unit = tmp_path / "ballast-agent.service"
    unit.write_text(service_text(SYSTEMD, []))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    # The program is not installed here; everything else must be in order.
    said = [line for line in done.stderr.splitlines() if PROGRAM not in line]
    assert said == []

"""The command as its users see it: exit statuses and messages of the real program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ballast.daemon.version import ballast_version


def ballast(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ballast.cli.main", *arguments],
        env={**os.environ, "BALLAST_RUNTIME_DIR": str(root), "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    result = ballast(tmp_path, "--version")
    assert (result.returncode, result.stdout) == (0, f"ballast {ballast_version()}\n")


def test_help_names_every_command_and_the_exit_statuses(tmp_path: Path) -> None:
    text = ballast(tmp_path, "--help").stdout
    for word in ("demo", "doctor", "launch", "serve", "status", "set", "stats", "bench", "image"):
        assert word in text
    assert "3 timed out" in text


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["status", "nope"], 1, "no VM named nope is being served"),
        (["set", "nope"], 2, "Missing argument"),
        (["set", "nope", "1Q"], 2, "is not a size"),
        (["serve"], 2, "name at least one VM"),
        (["serve", "a", "a"], 1, "named twice"),
        (["serve", "../evil"], 1, "cannot be a VM's name"),
        (["serve", "a", "b", "--fd", "3"], 2, "exactly one VM"),
        (["serve", "a", "--config", "/nonexistent.toml"], 1, "cannot read /nonexistent.toml"),
        (["launch", "x", "--qemu", "/bin/true", "--accel", "tcg"], 1, "/bin/true"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_wrong_use_is_answered_with_a_reason_and_a_status(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    result = ballast(tmp_path, *arguments)
    assert result.returncode == status, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_capabilities_follow_the_conventions_of_qemu(tmp_path: Path) -> None:
    result = ballast(tmp_path, "serve", "--print-capabilities")
    assert result.stdout == '{"type": "balloon", "features": []}\n'

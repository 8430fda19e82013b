"""Short runs of `ballast soak`; long ones are for whoever has the time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ballast.daemon.config import Transport

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


def soak(report: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "ballast.cli.main", "soak", *arguments, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


def test_qemu_and_the_guest_do_not_notice_that_workers_are_killed(
    tmp_path: Path, transport: Transport
) -> None:
    found = soak(
        tmp_path / "report.json",
        *("--transport", transport, "--kill-worker", "6", "--stop-worker", "1"),
    )
    assert found["ok"] is True
    assert (found["kills"], found["stops"]) == (6, 1)
    assert (found["ledger_mismatches"], found["bytes_wrong"]) == (0, 0)
    assert found["bytes_verified"] > 0


def test_a_storm_loses_nothing(tmp_path: Path) -> None:
    found = soak(tmp_path / "report.json", "--minutes", "0.5")
    assert found["ok"] is True
    assert found["checks"] > 0
    assert found["agent_kills"] > 0
    assert (found["ledger_mismatches"], found["bytes_wrong"], found["oom_kills"]) == (0, 0, 0)

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from support.balloon_control import MIB, FakeBalloonControl, FakeStats
from support.served import served_vm

runner = CliRunner()


@pytest.fixture
def web(runtime_root: Path) -> Iterator[FakeBalloonControl]:
    stats = FakeStats({5: 1, 6: 300 * MIB}, 1000)
    status = {"state": "running", "problem": "a problem", "ledger": {"bytes": 512 * MIB}}
    vm = FakeBalloonControl(
        name="web", actual_bytes=1536 * MIB, guest_stats=stats, extra_status=dict(status)
    )
    with served_vm(runtime_root, vm):
        yield vm


def run(*arguments: str) -> Result:
    return runner.invoke(app, arguments, catch_exceptions=False)


def test_nobody(runtime_root: Path) -> None:
    assert "No VM is being served" in run("top", "--once").stdout
    assert json.loads(run("top", "--json").stdout) == []


def test_one_look(web: FakeBalloonControl) -> None:
    run("hold", "web", "-r", "a backup")
    (line,) = [line for line in run("top", "--once").stdout.splitlines() if "web" in line]
    for word in ("moving", "█████████░░░", "1.50 GiB", "512 MiB", "300 MiB (12 s)", "a problem"):
        assert word in line
    assert "held: a backup" in line
    (found,) = json.loads(run("top", "--json").stdout)
    assert (found["name"], found["resizing"]["hold"]["enabled"]) == ("web", True)
    assert found["stats"]["age-seconds"] == 12.5


def test_what_waits_for_whole_host_pages(web: FakeBalloonControl) -> None:
    web.extra_status["ledger"] = {"bytes": 512 * MIB, "waiting-bytes": 0}
    assert "waits" not in run("top", "--once").stdout
    web.extra_status["ledger"] = {"bytes": 512 * MIB, "waiting-bytes": 3 * MIB}
    web.extra_status["problem"] = ""
    assert "3 MiB waits" in run("top", "--once").stdout


def test_one_that_has_gone_is_still_named(runtime_root: Path, web: FakeBalloonControl) -> None:
    directory = runtime_root / "gone"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(directory / "qmp.sock"))
    assert "nobody serves gone any more" in run("top", "--once").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_goes_on_until_it_is_told(
    web: FakeBalloonControl, number: signal.Signals
) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "ballast.cli.main", "top", "-n", "0.1"]
    with subprocess.Popen(command, stdout=terminal, stdin=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        deadline = time.monotonic() + 60
        while shown.count(b"web") < 2:
            assert time.monotonic() < deadline
            shown += os.read(master, 65536)
        process.send_signal(number)
        try:
            while True:
                shown += os.read(master, 65536)
        except OSError:
            pass
        assert process.wait(60) == 0
    os.close(master)
    # The terminal is left as it was: the other screen, and the cursor, are back.
    assert shown.rindex(b"\x1b[?1049l") > shown.rindex(b"\x1b[?1049h")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")

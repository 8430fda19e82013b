from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from ballast_protocol.errors import OperatorError, TimedOutError
from support.balloon_control import MIB, FakeBalloonControl
from support.served import served_vm

runner = CliRunner()
STATUS = {
    "state": "running",
    "problem": "",
    "ledger": {"bytes": 512 * MIB, "difference-bytes": 0},
    "host": {"allocated-bytes": 700 * MIB, "rss-shmem-bytes": 690 * MIB},
    "features": ["STATS_VQ"],
    "agent": {"state": "reporting", "agent": {"version": "0.1.0", "kernel-release": "6.12"}},
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def web(root: Path) -> Iterator[FakeBalloonControl]:
    with served_vm(root, FakeBalloonControl(name="web", extra_status=dict(STATUS))) as vm:
        yield vm


def run(*arguments: str) -> Result:
    return runner.invoke(app, arguments, catch_exceptions=True)


def test_status_without_vms_says_how_to_start_one() -> None:
    result = run("status")
    assert result.exit_code == 0
    assert "ballast launch" in result.stdout


def test_status_shows_what_each_side_says(web: FakeBalloonControl) -> None:
    result = run("status")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("web")]
    assert line.split() == (
        ["web", "running", "2", "GiB", "-", "2", "GiB", "512", "MiB", "700", "MiB", "reporting"]
    )


def test_status_of_one_vm_as_json_is_one_object(web: FakeBalloonControl) -> None:
    found = json.loads(run("status", "web", "--json").stdout)
    assert (found["name"], found["ram-bytes"], found["ledger"]["bytes"]) == (
        "web",
        2048 * MIB,
        512 * MIB,
    )
    (again,) = json.loads(run("status", "--json").stdout)
    # Each look at it is one more connection.
    assert again.pop("qmp")["connections"] == found.pop("qmp")["connections"] + 1
    assert again == found


def test_status_shows_a_problem(web: FakeBalloonControl) -> None:
    web.extra_status["problem"] = "QEMU shares no guest memory with us"
    assert "QEMU shares no guest memory with us" in run("status").stdout


def test_status_of_an_unknown_vm_fails() -> None:
    result = run("status", "nope")
    assert isinstance(result.exception, OperatorError)
    assert "nope" in str(result.exception)


def test_status_leaves_out_what_has_just_gone(root: Path, web: FakeBalloonControl) -> None:
    (root / "dead").mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(root / "dead" / "qmp.sock"))
    assert [each["name"] for each in json.loads(run("status", "--json").stdout)] == ["web"]


def test_set_without_wait_returns_at_once(web: FakeBalloonControl) -> None:
    web.follows = False
    result = run("set", "web", "1G")
    assert (result.exit_code, web.target_bytes) == (0, 1024 * MIB)
    assert "asked for 1 GiB" in result.stdout


def test_set_with_wait_tells_the_size_reached(web: FakeBalloonControl) -> None:
    result = run("set", "web", "512M", "--wait", "--json")
    assert json.loads(result.stdout) == {
        "name": "web",
        "target-bytes": 512 * MIB,
        "actual-bytes": 512 * MIB,
    }


def test_set_that_is_not_reached_times_out_and_says_how_far_it_got(
    web: FakeBalloonControl,
) -> None:
    web.follows = False
    result = run("set", "web", "1G", "--wait", "--timeout", "0.2")
    assert isinstance(result.exception, TimedOutError)
    assert "2 GiB of 1 GiB" in str(result.exception)


@pytest.mark.parametrize("size", ["1X", "0", "-1G", ""])
def test_a_size_that_is_none_is_wrong_use(size: str) -> None:
    assert run("set", "web", "--", size).exit_code == 2


def test_what_the_vm_refuses_is_an_error(web: FakeBalloonControl) -> None:
    web.smallest_target_bytes = 1024 * MIB
    result = run("set", "web", "1M")
    assert isinstance(result.exception, OperatorError)
    assert "below the floor" in str(result.exception)


def test_fresh_stats_as_table_and_json(web: FakeBalloonControl) -> None:
    web.fresh_values = {4: 100 * MIB, 3: 12345}
    table = run("stats", "web").stdout
    assert "100 MiB" in table
    assert "12345" in table
    found = json.loads(run("stats", "web", "--json").stdout)
    assert found["stats"]["stat-free-memory"] == 100 * MIB
    assert found["fresh"] is True


def test_stats_of_a_silent_guest_time_out_but_the_last_ones_can_be_read(
    web: FakeBalloonControl,
) -> None:
    assert isinstance(run("stats", "web", "--timeout", "0.1").exception, TimedOutError)
    result = run("stats", "web", "--last")
    assert result.exit_code == 0
    assert "never sent" in result.stdout


def test_names_are_completed(web: FakeBalloonControl) -> None:
    from ballast.cli.common import complete_vm

    assert complete_vm("w") == ["web"]
    assert complete_vm("x") == []

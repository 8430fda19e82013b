from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from ballast_protocol.errors import OperatorError, TimedOutError
from support.balloon_control import MIB, FakeBalloonControl, FakeStats
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
    result = run("stats", "web", "--cached")
    assert result.exit_code == 0
    assert "never sent" in result.stdout


def test_stats_that_are_young_enough(web: FakeBalloonControl) -> None:
    web.guest_stats = FakeStats({4: 100 * MIB}, 1000)
    assert "12.5 s old" in run("stats", "web", "--max-age", "60").stdout
    assert isinstance(run("stats", "web", "--max-age", "5").exception, TimedOutError)


def test_status_says_what_is_held_and_why(web: FakeBalloonControl) -> None:
    assert run("hold", "web", "--reason", "a backup").exit_code == 0
    assert run("inhibit", "web").exit_code == 0
    text = " ".join(run("status", "web").stdout.split())
    assert "(held)" in text
    assert "target on hold a backup" in text
    assert "giving back inhibited yes, no reason was given" in text


def test_status_says_what_waits_for_whole_host_pages(web: FakeBalloonControl) -> None:
    web.extra_status["ledger"] = {"bytes": 512 * MIB, "waiting-bytes": 3 * MIB}
    text = " ".join(run("status", "web").stdout.split())
    assert "waits for whole host pages 3 MiB" in text


def test_names_are_completed(web: FakeBalloonControl) -> None:
    from ballast.cli.common import complete_vm

    assert complete_vm("w") == ["web"]
    assert complete_vm("x") == []


def test_a_health_check_is_silent_if_all_vms_answer(root: Path) -> None:
    assert run("status", "--check").exit_code == 1
    with served_vm(root, FakeBalloonControl(name="web")):
        result = run("status", "--check")
    assert result.exit_code == 0
    assert result.stdout == ""


def test_a_health_check_names_the_vm_that_does_not_answer(root: Path) -> None:
    (root / "old").mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(root / "old" / "qmp.sock"))
    with served_vm(root, FakeBalloonControl(name="web")):
        result = run("status", "--check")
    assert result.exit_code == 1
    assert isinstance(result.exception, OperatorError)
    assert str(result.exception) == "no answer from old"

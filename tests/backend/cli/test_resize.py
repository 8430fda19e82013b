from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from ballast_protocol.errors import OperatorError, TimedOutError
from support.balloon_control import MIB, FakeBalloonControl
from support.served import served_vm

runner = CliRunner()


@pytest.fixture
def web(runtime_root: Path) -> Iterator[FakeBalloonControl]:
    with served_vm(runtime_root, FakeBalloonControl(name="web")) as vm:
        yield vm


def run(*arguments: str) -> Result:
    return runner.invoke(app, arguments, catch_exceptions=True)


def test_without_wait_it_returns_at_once(web: FakeBalloonControl) -> None:
    web.follows = False
    result = run("set", "web", "1G")
    assert (result.exit_code, web.target_bytes) == (0, 1024 * MIB)
    assert "asked for 1 GiB" in result.stdout
    assert web.governor.current_resize is None


def test_with_wait_it_tells_what_came_of_it(web: FakeBalloonControl) -> None:
    found = json.loads(run("set", "web", "512M", "--wait", "--json").stdout)
    assert found == {**found, "name": "web", "result": "reached", "rolled-back": False}
    assert found["target-bytes"] == found["actual-bytes"] == 512 * MIB
    assert "the guest has 1 GiB" in run("set", "web", "1G", "-w").stdout


@pytest.mark.parametrize(
    ("size", "target"),
    [("50%", 1024), ("+256M", 1280), ("-256M", 768), ("1G", 1024), ("4G", 2048)],
)
def test_sizes(web: FakeBalloonControl, size: str, target: int) -> None:
    web.set_target(1024 * MIB)
    for arguments in (("web", size), ("web", size, "--json"), ("--json", "web", size)):
        web.set_target(1024 * MIB)
        assert run("set", *arguments).exit_code == 0
        assert web.governor.target_bytes == target * MIB


def test_too_much_is_all_there_is(web: FakeBalloonControl) -> None:
    assert "has 2 GiB in all" in run("set", "web", "4G", "--wait").stderr


@pytest.mark.parametrize("size", ["1X", "0", "", "120%", "+0"])
def test_a_size_that_is_none_is_wrong_use(size: str) -> None:
    assert run("set", "web", "--", size).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["1G", "--settle", "--rollback"],
        ["1G", "--cancel"],
        ["--cancel", "--settle"],
        ["1G", "--rate", "quick"],
        ["1G", "--timeout", "0"],
        [],
    ],
)
def test_what_does_not_go_together_is_wrong_use(arguments: list[str]) -> None:
    assert run("set", "web", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("options", "error", "status", "outcome"),
    [
        (["--timeout", "0.2"], TimedOutError, 3, "timed-out"),
        (["--stall-timeout", "0.2"], OperatorError, 1, "stalled"),
    ],
)
def test_what_is_not_reached_has_an_exit_status_of_its_own(
    web: FakeBalloonControl,
    options: list[str],
    error: type[OperatorError],
    status: int,
    outcome: str,
) -> None:
    web.follows = False
    failed = run("set", "web", "1G", "--wait", *options).exception
    assert type(failed) is error
    assert "2 GiB" in str(failed)
    assert "the target stays 1 GiB" in str(failed)
    result = run("set", "web", "1G", "--wait", "--json", "--rollback", *options)
    found = json.loads(result.stdout)
    assert (result.exit_code, found["result"], found["rolled-back"]) == (status, outcome, True)


def test_a_limit_and_cancel(web: FakeBalloonControl) -> None:
    assert run("set", "web", "512M", "--rate", "1M/s").exit_code == 0
    assert web.governor.current_resize == 1
    assert web.governor.status()["rate-bytes"] == MIB
    result = run("set", "web", "--cancel", "--rollback", "--json")
    assert json.loads(result.stdout)["result"] == "cancelled"
    assert web.target_bytes == 2048 * MIB
    assert isinstance(run("set", "web", "--cancel").exception, OperatorError)


def test_what_the_vm_refuses_is_an_error(web: FakeBalloonControl) -> None:
    web.smallest_target_bytes = 1024 * MIB
    assert "below the floor" in str(run("set", "web", "1M").exception)
    run("hold", "web", "-r", "a backup")
    for wait in ([], ["--wait"]):
        failed = run("set", "web", "1G", *wait).exception
        assert "on hold: a backup" in str(failed)
    assert web.target_bytes is None


# Switches


def test_hold_and_release(web: FakeBalloonControl) -> None:
    assert "on hold" in run("hold", "web").stdout
    assert json.loads(run("hold", "web", "--release", "--json").stdout) == {
        "name": "web",
        "hold": False,
    }
    assert run("set", "web", "1G").exit_code == 0


def test_inhibit_and_release(web: FakeBalloonControl) -> None:
    assert "no memory is given back" in run("inhibit", "web", "--reason", "a GPU").stdout
    assert web.is_inhibited
    # As in QEMU, where the guest shrinks in vain; but it is said.
    assert "gives nothing back" in run("set", "web", "1G").stderr
    assert "a GPU" in str(run("set", "web", "512M", "--wait").exception)
    assert "given back again" in run("inhibit", "web", "--release").stdout
    assert not web.is_inhibited


def test_a_release_needs_no_reason() -> None:
    assert run("hold", "web", "--release", "--reason", "x").exit_code == 2

"""The keeper and real processes, which do what a worker does except for serving anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.keeper import supervisor
from ballast.keeper.vault import ALIVE
from support.fds import none_left_open
from support.keeping import Supervised, supervised


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Supervised]:
    with none_left_open(), supervised(tmp_path) as it:
        yield it


def test_the_next_worker_gets_what_the_last_one_left(it: Supervised) -> None:
    it.start()
    assert it.takeover == ["v1", "start", "", ""]
    it.kill()
    assert it.takeover == ["v1", "restart", "was killed by SIGKILL", "vm/takeover"]


def test_a_spare_takes_over_and_another_one_is_loaded(it: Supervised) -> None:
    it.start()
    it.until_spare()
    spare = it.spare
    assert spare is not None
    assert it.kill() == spare.pid
    it.until_spare()
    assert it.spare is not spare


def test_workers_that_die_in_a_row_are_replaced_after_a_pause(
    it: Supervised, capfd: pytest.CaptureFixture[str]
) -> None:
    it.start()
    for _ in range(3):
        it.kill(signal.SIGSEGV)
    log = capfd.readouterr().err
    assert log.count("was killed by SIGSEGV; another takes over") == 3
    assert "takes over in 0.05 s" in log
    assert it.supervisor._counts.restarts == 3


def test_a_spare_that_dies_is_replaced(it: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SPARE_RETRY_SECONDS", 0.01)
    it.start()
    it.until_spare()
    first = it.spare
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    it.until(lambda: it.spare not in (None, first))
    assert it.supervisor._counts.restarts == 0


def test_a_worker_that_cannot_begin_ends_the_keeper_too(it: Supervised) -> None:
    it.install("wrong use")
    it.supervisor._replace("start", "")
    it.until(lambda: it.status is not None)
    assert it.status == 2


def test_a_worker_that_cannot_be_started_is_tried_again(
    it: Supervised, capfd: pytest.CaptureFixture[str]
) -> None:
    command, it.supervisor._command = it.supervisor._command, ["/no/such/program"]
    it.supervisor._replace("start", "")
    assert "a worker cannot be started: " in capfd.readouterr().err
    it.supervisor._command = command
    it.until(lambda: bool(it.pid))


def test_a_worker_that_never_serves_is_killed(
    it: Supervised, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "READY_SECONDS", 0.5)
    it.install("hangs")
    it.supervisor._replace("start", "")
    it.until(lambda: it.supervisor._counts.restarts == 1)
    monkeypatch.undo()
    it.install("v1")
    it.until(lambda: bool(it.pid))
    assert "was killed by SIGKILL: it did not serve in time" in capfd.readouterr().err


def test_a_bug_of_the_keeper_s_leaves_nobody_alone(
    it: Supervised, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "HEARTBEAT_SECONDS", 0.05)
    it.start()
    it.supervisor._beat()
    with monkeypatch.context() as patch:
        patch.setattr(it.supervisor, "_replace", lambda *arguments: 1 // 0)
        os.kill(it.pid, signal.SIGKILL)
        it.until(lambda: it.supervisor._counts.restarts == 1)
    it.until(lambda: bool(it.pid))
    assert it.takeover[:3] == ["v1", "restart", "nobody served"]
    assert "a bug of ours: ZeroDivisionError" in capfd.readouterr().err


# Hanging


@pytest.fixture
def _quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEARTBEAT_SECONDS", 0.1)


@pytest.mark.usefixtures("_quick_beats")
def test_a_worker_that_shows_no_life_any_more_is_replaced(
    it: Supervised, capfd: pytest.CaptureFixture[str]
) -> None:
    it.install("shows life once")
    it.start()
    it.install("v1")
    it.supervisor._beat()
    it.until(lambda: it.supervisor._counts.restarts == 1)
    it.until(lambda: bool(it.pid))
    assert it.takeover[:2] == ["v1", "restart"]
    assert "was killed by SIGKILL: it hung" in capfd.readouterr().err
    # This one never said that it would show any.
    assert ALIVE not in it.keeper.vault


@pytest.mark.usefixtures("_quick_beats")
def test_a_worker_that_goes_on_or_stands_still_for_a_moment_is_left_alone(it: Supervised) -> None:
    it.install("shows life")
    it.start()
    it.supervisor._beat()
    beats = _beats_of(it)
    it.until(lambda: next(beats) > 2 * supervisor.SILENT_BEATS)
    os.kill(it.pid, signal.SIGSTOP)
    it.until(lambda: it.supervisor._silent_beats >= supervisor.SILENT_BEATS // 2)
    os.kill(it.pid, signal.SIGCONT)
    it.until(lambda: it.supervisor._silent_beats == 0)
    assert it.supervisor._counts.restarts == 0


def _beats_of(it: Supervised) -> Iterator[int]:
    """Count the keeper's heartbeats, which go on meanwhile."""
    seen, beat = [0], it.supervisor._look_for_life

    def counted() -> None:
        seen[0] += 1
        beat()

    it.supervisor._look_for_life = counted  # type: ignore[method-assign]
    while True:
        yield seen[0]


# Ending


def test_stopping_waits_for_the_worker(it: Supervised) -> None:
    it.start()
    it.until_spare()
    it.supervisor.stop()
    it.until(lambda: it.status is not None)
    assert it.status == 0
    assert len(it.keeper.vault) == 0
    assert it.spare is None


def test_stopping_twice_waits_for_nobody(it: Supervised) -> None:
    it.start()
    os.kill(it.pid, signal.SIGSTOP)
    it.supervisor.stop()
    assert it.status is None
    it.supervisor.stop()
    assert it.status == 1


# Upgrades


def test_an_upgrade_runs_the_code_that_is_installed(it: Supervised) -> None:
    it.start()
    it.until_spare()
    old = it.pid
    it.install("v2")
    it.supervisor.upgrade()
    it.supervisor.upgrade()
    it.until(lambda: it.pid not in (0, old))
    assert it.takeover == ["v2", "upgrade", "upgrade", "vm/takeover"]
    assert it.supervisor._counts.attempts == it.supervisor._counts.upgrades == 1
    # The spare had the old code.
    it.until_spare()
    it.kill()
    assert it.takeover[:2] == ["v2", "restart"]


def test_a_successor_that_cannot_read_the_state_leaves_the_worker_serving(it: Supervised) -> None:
    it.start()
    old = it.pid
    it.install("cannot read")
    it.supervisor.upgrade()
    it.until(lambda: bool(it.text("vm/failed")))
    assert "ended (1): a state of version 9 before it could take over" in it.text("vm/failed")
    assert it.pid == old
    assert it.supervisor._counts.upgrade_error == it.text("vm/failed")


def test_a_successor_that_hangs_leaves_the_worker_serving(
    it: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.start()
    it.supervisor._command = ["sleep", "1000"]
    monkeypatch.setattr(supervisor, "READY_SECONDS", 0.2)
    it.supervisor.upgrade()
    it.until(lambda: bool(it.text("vm/failed")))
    assert "it was not ready in time" in it.text("vm/failed")


def test_a_successor_that_dies_as_it_takes_over_is_replaced_by_the_old_code(
    it: Supervised,
) -> None:
    it.start()
    it.until_spare()
    spare, old = it.spare, it.pid
    assert spare is not None
    it.install("dies")
    it.supervisor.upgrade()
    it.until(lambda: it.pid not in (0, old))
    assert it.pid == spare.pid
    assert it.takeover[:2] == ["v1", "upgrade-failed"]
    assert "SIGABRT" in it.supervisor._counts.upgrade_error


def test_a_worker_that_does_not_leave_is_killed(
    it: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEAVE_SECONDS", 0.1)
    it.start()
    old = it.pid
    os.kill(old, signal.SIGSTOP)
    it.install("v2")
    it.supervisor.upgrade()
    it.until(lambda: it.pid not in (0, old))
    assert it.takeover[:2] == ["v2", "upgrade"]


def test_a_worker_that_dies_in_an_upgrade_is_succeeded_all_the_same(it: Supervised) -> None:
    it.start()
    old = it.pid
    it.install("v2")
    it.supervisor.upgrade()
    os.kill(old, signal.SIGKILL)
    it.until(lambda: it.pid not in (0, old))
    assert it.takeover[:2] == ["v2", "upgrade"]


def test_without_a_worker_there_is_no_upgrade(
    it: Supervised, capfd: pytest.CaptureFixture[str]
) -> None:
    it.supervisor.upgrade()
    assert "no worker serves" in capfd.readouterr().err

from __future__ import annotations

import time

import pytest

from ballast.daemon.kept import Kept, Mode
from ballast.keeper.client import Takeover
from ballast_protocol.errors import OperatorError


def test_a_process_that_nobody_keeps() -> None:
    kept = Kept()
    kept.serving()
    assert not kept.is_restart
    assert kept.status()["last-gap-seconds"] is None
    assert kept.status()["mode"] == "none"


def test_how_long_guests_waited() -> None:
    kept = Kept("parent", Takeover("restart", "was killed by SIGKILL", time.monotonic_ns(), 3), 7)
    kept.serving()
    status = kept.status()
    assert isinstance(status["last-gap-seconds"], float)
    assert 0 <= status["last-gap-seconds"] < 60
    assert (status["restarts"], status["last-reason"]) == (3, "was killed by SIGKILL")


@pytest.mark.parametrize(
    ("takeover", "reason"),
    [
        (Takeover("start", "x"), ""),
        (Takeover("restart"), "the worker before this one ended"),
        (Takeover("upgrade", "upgrade"), "upgrade"),
        (Takeover("upgrade-failed", "ended (1)"), "upgrade failed: ended (1)"),
        (Takeover("adopt", "x"), ""),
    ],
)
def test_reasons(takeover: Takeover, reason: str) -> None:
    assert Kept("parent", takeover).reason == reason


@pytest.mark.parametrize("mode", ["none", "service", "systemd"])
def test_where_nobody_can_upgrade_it_says_what_to_do(mode: Mode) -> None:
    with pytest.raises(OperatorError, match="cannot be replaced") as caught:
        Kept(mode, keeper_pid=1).upgrade()
    assert caught.value.hint


def test_a_keeper_is_asked_for_an_upgrade_as_long_as_it_lives() -> None:
    asked: list[int] = []
    kept = Kept("parent", keeper_pid=7, ask=lambda: asked.append(1))
    kept.upgrade()
    assert asked
    kept.keeper_pid = None
    with pytest.raises(OperatorError, match="keeper is gone"):
        kept.upgrade()

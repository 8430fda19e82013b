from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from ballast.demo.containers import ChargedStep, ended_by_sigterm, run_in_containers
from ballast.demo.tour import Account, TourStep
from ballast_images.container_images import checkout
from ballast_images.engine import Engine
from ballast_images.progress import SilentReporter
from ballast_protocol.errors import OperatorError

MIB = 1 << 20


def step(name: str, before: int, after: int, *, ok: bool = True) -> TourStep:
    first, last = (Account(1024 * MIB, 1024 * MIB, 0, size * MIB) for size in (before, after))
    return TourStep(name, 1.0, first, last, ok)


def engine(tmp_path: Path, tour: str) -> Engine:
    """Return an engine whose tour is a script, and whose containers are charged for ever more."""
    program = tmp_path / "podman"
    program.write_text(f"""#!/bin/sh
echo "$@" >> {tmp_path}/log
case "$*" in
  *ExitCode*) echo 0;;
  *memory.current*) echo x >> {tmp_path}/asked; expr $(wc -l < {tmp_path}/asked) '*' 1048576;;
  *--vm=web*) {tour};;
esac
""")
    program.chmod(0o755)
    return Engine("podman", program)


def lines(*steps: TourStep) -> str:
    events = [each for step in steps for each in ({"begins": step.name}, step.as_json())]
    return "\n".join(json.dumps(each) for each in events)


def test_each_step_is_set_beside_the_charge(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(lines(step("use", 100, 900), step("grow", 900, 900)) + "\n")
    found = run_in_containers(
        engine(tmp_path, f"cat {tmp_path}/events"), checkout(), SilentReporter()
    )
    assert [each.step for each in found] == [step("use", 100, 900), step("grow", 900, 900)]
    assert [(each.before_bytes, each.after_bytes) for each in found] == (
        [(MIB, 2 * MIB), (3 * MIB, 4 * MIB)]
    )
    told = (tmp_path / "log").read_text().splitlines()
    stops = [line.rpartition("-")[2] for line in told if line.startswith("stop ")]
    assert stops == ["vm", "balloon", "broker"]


def test_a_tour_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="status 3: no guest"):
        run_in_containers(
            engine(tmp_path, "echo no guest >&2; exit 3"), checkout(), SilentReporter()
        )
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("network rm")


@pytest.mark.parametrize(
    ("name", "after", "charge", "ok"),
    [("shrink", 400, 500, True), ("shrink", 400, 900, False), ("use", 900, 1000, True)],
)
def test_a_charge_that_does_not_fall_with_the_memory_is_no_success(
    name: str, after: int, charge: int, ok: bool
) -> None:
    assert ChargedStep(step(name, 900, after), 1000 * MIB, charge * MIB).ok == ok
    assert not ChargedStep(step(name, 900, after, ok=False), 1000 * MIB, charge * MIB).ok


def test_sigterm_is_an_error_while_containers_run() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OperatorError, match="stopped by SIGTERM"), ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before

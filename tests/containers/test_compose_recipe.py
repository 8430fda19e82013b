"""What `ballast launch --print-command --format compose` prints, run as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ballast.daemon.recipes.compose import compose
from ballast.daemon.recipes.model import Site
from ballast_images.compose import Stack, read_project
from ballast_images.engine import Engine, EngineError
from support.plans import plan

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 300


def test_a_guest_reaches_its_target_and_shuts_down(engine: Engine, tmp_path: Path) -> None:
    vm = plan(accelerator="tcg", target="512M")
    path = tmp_path / "compose.yaml"
    path.write_text(compose(vm, Site()).files[0].text)
    with Stack(engine, read_project(path), "recipe") as stack:
        stack.start("balloon")
        stack.start("vm")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while actual(stack) != 512 << 20:
            assert time.monotonic() < deadline, stack.log("balloon") + stack.log("vm")
            time.sleep(1)
        stack.run_inside("balloon", "ballast", "status", "--check")
        # The guest for trials has no power button that it would listen to; QMP has a harder one.
        socket = Site().paths(vm).qemu_qmp
        stack.run_inside("vm", "sh", "-ec", f"echo quit | qmp-shell {socket}")
        while stack.is_running("vm"):
            assert time.monotonic() < deadline, stack.log("vm")
            time.sleep(1)
        assert stack.is_running("balloon")
        assert stack.end("balloon") == 0


def actual(stack: Stack) -> object:
    """Return what the guest says it has; None while nobody can be asked."""
    try:
        return json.loads(stack.run_inside("balloon", "ballast", "status", "web", "--json")).get(
            "actual-bytes"
        )
    except EngineError:
        return None

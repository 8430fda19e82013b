"""QEMU and its balloon as one: a script plays QEMU."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan, launch, shell_lines
from ballast_protocol.errors import OperatorError
from support.backend import until
from support.fds import none_left_open


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def plan(tmp_path: Path, script: str, **options: object) -> LaunchPlan:
    """Return a plan to run `script` instead of QEMU."""
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    return LaunchPlan(
        config=VmConfig.model_validate({"name": "vm", **options}),
        qemu=qemu,
        memory_bytes=1 << 30,
        cpus=2,
        accelerator="tcg",
        image=None,
        arguments=("-snapshot",),
    )


def test_the_command_line_has_all_that_the_balloon_needs(tmp_path: Path, root: Path) -> None:
    command = plan(tmp_path, "").command()
    assert command[0] == str(tmp_path / "qemu")
    assert command[-1] == "-snapshot"
    text = " ".join(command)
    assert "share=on" in text
    assert f"path={root}/vm/vhost-user.sock" in text
    assert f"unix:{root}/vm/qemu-qmp.sock,server=on,wait=off" in text
    assert "org.ballast.agent.0" in text


def test_each_option_has_its_line() -> None:
    lines = shell_lines(["qemu", "-m", "1G", "-name", "a b"]).splitlines()
    assert lines == ["qemu \\", "  -m 1G \\", "  -name 'a b'"]


async def test_the_balloon_is_there_before_qemu_and_goes_after_it(
    tmp_path: Path, root: Path
) -> None:
    script = f"test -S {root}/vm/vhost-user.sock && exit 7"
    with none_left_open():
        assert await launch(plan(tmp_path, script)) == 7
    assert os.listdir(root) == []


async def test_a_signal_ends_qemu_first(tmp_path: Path, root: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    script = f"""
trap 'test -S {root}/vm/vhost-user.sock && touch {ended}; exit 0' TERM
touch {started}
while :; do sleep 0.01; done
"""
    running = asyncio.create_task(launch(plan(tmp_path, script)))
    await until(lambda: started.exists() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert ended.exists()
    assert os.listdir(root) == []


async def test_a_qemu_that_cannot_be_run(tmp_path: Path, root: Path) -> None:
    broken = plan(tmp_path, "")
    broken.qemu.chmod(0o644)
    with pytest.raises(OperatorError, match="cannot run"):
        await launch(broken)
    assert os.listdir(root) == []

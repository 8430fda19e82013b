"""QEMU and a keeper beside it: a script plays QEMU, a fake balloon the worker."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ballast.daemon import beside
from ballast.daemon.beside import KeeperBeside, launch_beside
from ballast.daemon.config import VmConfig
from ballast.daemon.keeping import wait_for_keeper
from ballast.daemon.kept import Kept, Mode
from ballast.daemon.launch import LaunchPlan
from ballast_images.guest import GuestImage
from ballast_protocol.errors import OperatorError, TimedOutError
from support.backend import until
from support.balloon_control import FakeBalloonControl
from support.fds import none_left_open
from support.served import served_vm

PATIENCE_SECONDS = 60.0


def worker(mode: Mode = "service", keeper_pid: int | None = 0) -> FakeBalloonControl:
    """Return a worker whose keeper is in another container, unless it says otherwise."""
    return FakeBalloonControl(name="vm", kept=Kept(mode=mode, keeper_pid=keeper_pid))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def plan(tmp_path: Path, script: str, *, image: GuestImage | None = None) -> LaunchPlan:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    return LaunchPlan(VmConfig(name="vm"), qemu, 1 << 30, 2, "tcg", image, ("-snapshot",))


async def test_qemu_is_started_once_a_worker_serves_and_the_keeper_ends_after_it(
    tmp_path: Path, root: Path
) -> None:
    script = f'echo "$@" > {tmp_path}/told; test -S {root}/keeper.sock && exit 7'
    image = GuestImage(tmp_path / "vmlinuz", tmp_path / "initrd", "6.12")
    running = asyncio.create_task(launch_beside(plan(tmp_path, script, image=image), 60))
    await until((root / "keeper.sock").is_socket)
    assert not (tmp_path / "told").exists()
    with served_vm(root, worker()):
        assert await running == 7
    told = (tmp_path / "told").read_text()
    assert f"path={root}/vm/vhost-user.sock" in told
    assert f"id=shell,path={root}/vm/shell.sock,server=on" in told
    assert not (root / "keeper.sock").exists()


async def test_a_guest_of_the_operators_has_no_shell_of_ours(tmp_path: Path, root: Path) -> None:
    with served_vm(root, worker()):
        assert await launch_beside(plan(tmp_path, f'echo "$@" > {tmp_path}/told'), 60) == 0
    assert "shell.sock" not in (tmp_path / "told").read_text()


async def test_without_a_worker_it_gives_up_and_says_what_to_start(
    tmp_path: Path, root: Path
) -> None:
    with none_left_open(), pytest.raises(TimedOutError, match="no worker served vm") as caught:
        await launch_beside(plan(tmp_path, "exit 1"), 0.01)
    assert f"ballast serve vm --keeper {root}/keeper.sock --qemu-qmp" in caught.value.hint
    assert not (root / "keeper.sock").exists()


@pytest.mark.parametrize("kept", [("none", 1), ("service", None)])
async def test_a_worker_without_a_keeper_is_none(
    tmp_path: Path, root: Path, kept: tuple[Mode, int | None]
) -> None:
    with served_vm(root, worker(*kept)), pytest.raises(TimedOutError, match="no worker served"):
        await launch_beside(plan(tmp_path, "exit 1"), 1.0)


async def test_a_second_keeper_is_none(tmp_path: Path, root: Path) -> None:
    async with KeeperBeside(root / "keeper.sock"):
        wait_for_keeper(root / "keeper.sock", PATIENCE_SECONDS, print).close()
        with pytest.raises(OperatorError, match="keeper could not run"):
            await launch_beside(plan(tmp_path, "exit 1"), PATIENCE_SECONDS)
        assert (root / "keeper.sock").is_socket()


async def test_a_signal_before_there_is_a_worker(tmp_path: Path, root: Path) -> None:
    running = asyncio.create_task(launch_beside(plan(tmp_path, "exit 1"), PATIENCE_SECONDS))
    await until((root / "keeper.sock").is_socket)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(OperatorError, match="stopped by SIGTERM before a worker"):
        await running
    assert not (root / "keeper.sock").exists()


async def test_a_signal_ends_qemu_while_the_keeper_is_still_there(
    tmp_path: Path, root: Path
) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    script = f"""
trap 'test -S {root}/keeper.sock && touch {ended}; exit 0' TERM
touch {started}
while :; do sleep 0.01; done
"""
    with served_vm(root, worker()):
        running = asyncio.create_task(launch_beside(plan(tmp_path, script), PATIENCE_SECONDS))
        await until(lambda: started.exists() and (root / "keeper.sock").is_socket())
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
    assert ended.exists()
    assert not (root / "keeper.sock").exists()


async def test_a_keeper_that_is_killed_is_replaced(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "RESTART_SECONDS", 0.0)
    socket = root / "keeper.sock"
    async with KeeperBeside(socket) as keeper:
        wait_for_keeper(socket, PATIENCE_SECONDS, print).close()
        before = keeper.pid
        keeper.keep_going()
        os.kill(before, signal.SIGKILL)
        await until(lambda: keeper.pid != before)
        wait_for_keeper(socket, PATIENCE_SECONDS, print).close()
    assert not socket.exists()

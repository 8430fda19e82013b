from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from ballast.daemon.config import VmConfig
from ballast.daemon.kept import Kept
from ballast.daemon.serve import serve, serving, stop_signal
from ballast.daemon.vm import VirtualMachine
from ballast.keeper.client import Takeover
from ballast.streams.fdstore import MemoryStore
from ballast_protocol.errors import OperatorError
from support.backend import until
from support.fds import none_left_open
from support.machine import FREE, machine_at


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    return tmp_path


async def test_many_vms_in_one_process(root: Path) -> None:
    with none_left_open():
        async with (
            serving([VmConfig(name="a"), VmConfig(name="b")]) as (one, two),
            machine_at(one.paths.vhost_user) as first,
            machine_at(two.paths.vhost_user) as second,
        ):
            await first.start()
            await second.start()
            await first.inflate(FREE[0])
            await second.inflate(*FREE[:3])
            assert isinstance(one, VirtualMachine)
            assert isinstance(two, VirtualMachine)
            assert (one.ledger_bytes, two.ledger_bytes) == (4096, 3 * 4096)
    assert os.listdir(root) == []


@pytest.mark.parametrize("second", ["a", "b"], ids=["same name", "path taken"])
async def test_if_one_cannot_start_none_stays(root: Path, second: str) -> None:
    taken = root / "file"
    taken.touch()
    configs = [VmConfig(name="a"), VmConfig(name=second, socket_path=taken)]
    with none_left_open(), pytest.raises(OperatorError):
        async with serving(configs):
            pytest.fail("served")
    assert os.listdir(root) == ["file"]


async def test_an_error_inside_ends_all(root: Path) -> None:
    with none_left_open(), pytest.raises(ZeroDivisionError):
        async with serving([VmConfig(name="a")]):
            raise ZeroDivisionError
    assert os.listdir(root) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_either_signal_stops(number: signal.Signals) -> None:
    waiting = asyncio.create_task(stop_signal())
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert await waiting is number
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


async def test_a_daemon_lives_until_it_is_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving_all = asyncio.create_task(serve([VmConfig(name="a")]))
    await until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    async with machine_at(root / "a" / "vhost-user.sock") as machine:
        await machine.start()
        await machine.config()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving_all
    assert f"QEMU (process {os.getpid()}) is still connected" in caplog.text
    assert os.listdir(root) == []


async def test_a_vm_that_cannot_be_taken_over_is_left_alone(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its QEMU waits for a version that can; the other VMs do not."""
    with MemoryStore() as store:
        configs = [VmConfig(name="a"), VmConfig(name="b")]
        first = Kept("parent", Takeover(), os.getpid())
        async with serving(configs, store=store, kept=first) as machines:
            ours, theirs = socket.socketpair()
            store.put("a/connection", ours.fileno())
            ours.close()
            os.pwrite(store.held["a/state"], b"X" * 8, 0)
            names = set(store.held)
            then = Kept("parent", Takeover("restart"), os.getpid())
            async with serving(configs, store=store, left=store.take_all(), kept=then) as heirs:
                assert [machine.name for machine in heirs] == ["b"]
                assert set(store.held) == names
                theirs.setblocking(False)
                with pytest.raises(BlockingIOError):
                    theirs.recv(1)
            theirs.close()
            assert "a cannot be taken over, and its QEMU waits" in caplog.text
            del machines

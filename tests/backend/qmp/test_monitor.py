from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ballast.qmp import monitor as monitor_module
from ballast.qmp.monitor import MAX_IN_BAND, QemuMonitor
from ballast_protocol.qmp import ErrorClass, RefusedError
from support.backend import until
from support.fake_qemu import fake_qemu


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qemu.sock"


@pytest.fixture
async def monitor(path: Path) -> AsyncIterator[QemuMonitor]:
    monitor = QemuMonitor(path)
    await monitor.start()
    yield monitor
    await monitor.close()


async def connected(monitor: QemuMonitor) -> None:
    await until(lambda: monitor.greeting is not None and monitor.run_state is not None)


async def test_qemu_comes_goes_and_comes_again(monitor: QemuMonitor, path: Path) -> None:
    changes = []
    monitor.changes.append(lambda: changes.append(monitor.greeting is not None))
    await until(lambda: "QEMU is not at" in monitor.problem)
    with pytest.raises(RefusedError, match=r"not connected: QEMU is not at .*No such file"):
        await monitor.execute("query-name")
    for _ in range(2):
        async with fake_qemu(path) as qemu:
            await connected(monitor)
            assert qemu.enabled == ["oob"]
            assert monitor.status() == {
                "socket": str(path),
                "connected": True,
                "version": "11.1.3",
                "run-state": "running",
                "pid": os.getpid(),
                "problem": "",
            }
        await until(lambda: monitor.greeting is None)
        assert not monitor.run_state
        assert not monitor.pid
    assert changes == [True, False, True, False]


async def test_answers_and_refusals_are_qemus(monitor: QemuMonitor, path: Path) -> None:
    async with fake_qemu(path) as qemu:
        await connected(monitor)
        qemu.answers["query-name"] = {"name": "web"}
        qemu.answers["balloon"] = {"class": "KVMMissingCap", "desc": "no"}
        qemu.answers["odd"] = {"class": "NewInQemu12", "desc": "odd"}
        assert await monitor.execute("query-name") == {"name": "web"}
        for name, error_class in (
            ("balloon", ErrorClass.KVM_MISSING_CAP),
            ("odd", ErrorClass.GENERIC_ERROR),
            ("nope", ErrorClass.COMMAND_NOT_FOUND),
        ):
            with pytest.raises(RefusedError) as caught:
                await monitor.execute(name, {"value": 1})
            assert caught.value.error_class is error_class
        assert qemu.asked[1] == {"execute": "balloon", "arguments": {"value": 1}}


async def test_run_states_are_followed(monitor: QemuMonitor, path: Path) -> None:
    events: list[Any] = []
    monitor.events.append(events.append)
    async with fake_qemu(path) as qemu:
        await connected(monitor)
        qemu.answers["query-status"] = {"status": "paused", "running": False}
        stop = {"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}
        qemu.emit(stop)
        await until(lambda: monitor.run_state == "paused")
        assert events == [stop]


async def test_what_is_out_of_band_does_not_wait(monitor: QemuMonitor, path: Path) -> None:
    async with fake_qemu(path) as qemu:
        await connected(monitor)
        qemu.answers |= {"slow": {}, "yank": {}}
        qemu.gate = asyncio.Event()
        slow = [asyncio.create_task(monitor.execute("slow")) for _ in range(MAX_IN_BAND * 3)]
        assert await monitor.execute("yank", out_of_band=True) == {}
        # QEMU would read no further with more of them, and never see what is out of band.
        assert len([each for each in qemu.asked if each.get("execute") == "slow"]) <= MAX_IN_BAND
        qemu.gate.set()
        await asyncio.gather(*slow)


async def test_qemu_that_goes_in_the_middle(monitor: QemuMonitor, path: Path) -> None:
    async with fake_qemu(path) as qemu:
        await connected(monitor)
        qemu.gate = asyncio.Event()
        asked = asyncio.create_task(monitor.execute("slow"))
        await until(lambda: bool(qemu.asked))
    with pytest.raises(RefusedError, match="closed its monitor before it answered"):
        await asked


async def test_qemu_that_is_busy_with_another_client(
    monitor: QemuMonitor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "GREETING_SECONDS", 0.1)
    async with fake_qemu(path) as qemu:
        qemu.is_mute = True
        await until(lambda: "serves one client at a time" in monitor.problem)
        qemu.is_mute = False
        await connected(monitor)


async def test_somebody_else_than_qemu(monitor: QemuMonitor, path: Path) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(babble, path)
    await until(lambda: "QEMU is not at" not in monitor.problem)
    await until(lambda: bool(monitor.problem))
    assert monitor.greeting is None
    server.close()


async def test_a_queue_of_clients_before_us(monitor: QemuMonitor, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(path))
        await until(lambda: "serves one client at a time" in monitor.problem)

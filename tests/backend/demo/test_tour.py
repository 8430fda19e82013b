from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from ballast.daemon.paths import VmPaths
from ballast.demo.tour import Account, TourStep, account, tour, tour_table
from ballast_protocol.errors import OperatorError, TimedOutError
from support.balloon_control import MIB, FakeBalloonControl
from support.served import served_vm

STATUS = {
    "state": "running",
    "ram-bytes": 2048 * MIB,
    "ledger": {"bytes": 100 * MIB},
    "host": {"allocated-bytes": 700 * MIB},
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def web(**status: object) -> FakeBalloonControl:
    return FakeBalloonControl(name="web", extra_status={**STATUS, **status})


@asynccontextmanager
async def guest(root: Path) -> AsyncIterator[list[str]]:
    """A guest whose shell does whatever it is told; yields what that was."""
    told: list[str] = []
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        while line := await reader.readline():
            request = json.loads(line) if line.strip() else {}
            if "hello" in request:
                ready = {"session": "1", "boot_id": "1", "release": "6.12"}
                writer.write(json.dumps({"ready": ready}).encode() + b"\n")
            elif "id" in request:
                told.append(request["argv"][-1])
                reply = {"id": request["id"], "status": 0, "stdout": "", "stderr": ""}
                writer.write(json.dumps({**reply, "timed_out": False}).encode() + b"\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, VmPaths("web", root).shell)
    async with server:
        yield told
    await asyncio.gather(*(task for task in answering if task))


async def test_every_step_is_told_when_it_begins_and_when_it_ends(root: Path) -> None:
    shown: list[tuple[str, bool]] = []
    with served_vm(root, web()):
        async with guest(root) as told:
            steps = await tour(
                "web", lambda name, step: shown.append((name, step is not None)), wait_seconds=60
            )
    names = ["use", "shrink", "grow", "use-again"]
    assert [step.name for step in steps] == names
    assert shown == [(name, is_end) for name in names for is_end in (False, True)]
    assert told == [f"memtool fill --bytes {1536 * MIB}"] * 2
    # The host's figure stays what it is: using memory had to raise it, shrinking is content.
    assert [step.ok for step in steps] == [False, True, True, False]
    assert steps[1].after.target_bytes == 1024 * MIB


async def test_an_account_is_what_the_worker_says(root: Path) -> None:
    with served_vm(root, web()):
        found = await account(VmPaths("web", root))
    assert found.given_bytes == 100 * MIB
    assert found.host_bytes == 700 * MIB


async def test_an_account_without_a_guest(root: Path) -> None:
    with (
        served_vm(root, web(host={"allocated-bytes": None})),
        pytest.raises(OperatorError, match="no guest with a balloon"),
    ):
        await account(VmPaths("web", root))


async def test_a_vm_that_nobody_serves(root: Path) -> None:
    with pytest.raises(TimedOutError, match=r"web has no guest.*not served") as caught:
        await tour("web", lambda name, step: None, wait_seconds=0.01)
    assert "logs" in caught.value.hint


async def test_a_guest_without_our_shell(root: Path) -> None:
    with (
        served_vm(root, web()),
        pytest.raises(OperatorError, match="cannot reach the guest's shell") as caught,
    ):
        await tour("web", lambda name, step: None, wait_seconds=60)
    assert "--keeper" in caught.value.hint


def test_the_table_has_the_callers_columns() -> None:
    before, after = (Account(512 * MIB, 512 * MIB, 0, size * MIB) for size in (900, 400))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tour_table([TourStep("shrink", 1.5, before, after, True)], CHARGE=["1000 → 500"]))
    text = console.export_text()
    assert "CHARGE" in text
    assert "900 → 400" in text
    assert "1000 → 500" in text

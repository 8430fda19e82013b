"""`ballast serve` and `ballast keeper` as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError, TimedOutError

COMMAND = (sys.executable, "-m", "ballast.cli.main")
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02


class Daemon:
    """A running `ballast` command.

    Attributes:
        process: The process.
        root: The runtime directory of all VMs.
        log: What it and its children say.
    """

    def __init__(self, process: asyncio.subprocess.Process, root: Path, log: Path) -> None:
        self.process = process
        self.root = root
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def logged(self, text: str) -> None:
        """Wait until the log says something."""
        await eventually(lambda: text in " ".join(self.log.split()), f"log {text!r}: {self.log}")

    async def ended(self) -> int:
        """Wait for its end and return its status."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


async def eventually(condition: Any, what: str) -> None:
    """Wait until something is true."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise TimedOutError(f"this did not happen: {what}") from None


async def asked(paths: VmPaths, condition: Callable[[Any], Any]) -> Any:
    """Ask for the status, while one worker makes way for another too, until it is as wanted."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(OperatorError):
                async with qmp.connect(paths.qmp) as client:
                    status: Any = await client.query("ballast-status")
                if condition(status):
                    return status
            await asyncio.sleep(POLL_SECONDS)


async def keeper_status(root: Path, vm: str = "web") -> dict[str, Any]:
    """Return what a VM says of its keeper; asked again while nobody answers."""
    status = await asked(VmPaths(vm, root), lambda status: status["keeper"])
    return dict(status["keeper"])


async def status_with(root: Path, **expected: object) -> dict[str, Any]:
    """Return a VM's keeper status as soon as it has these values; names with `_` for `-`."""
    wanted = {name.replace("_", "-"): value for name, value in expected.items()}
    status = await asked(
        VmPaths("web", root),
        lambda status: status["keeper"] and wanted.items() <= status["keeper"].items(),
    )
    return dict(status["keeper"])


async def ballast(root: Path, *arguments: str, status: int = 0) -> str:
    """Run a command to its end and return what it printed, errors too."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments),
        env=os.environ | {"BALLAST_RUNTIME_DIR": str(root), "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        printed, _ = await process.communicate()
    assert process.returncode == status, printed.decode()
    return printed.decode()


async def ballast_json(root: Path, *arguments: str) -> Any:
    """Run a command with `--json` and return what it printed."""
    return json.loads(await ballast(root, *arguments, "--json"))


@asynccontextmanager
async def daemon(
    root: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> AsyncIterator[Daemon]:
    """Run a command in the background; in the end no process of it is left."""
    log = root / f"{arguments[0]}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, *arguments),
            env=os.environ | {"BALLAST_RUNTIME_DIR": str(root), **(environment or {})},
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
        )
    it = Daemon(process, root, log)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, it)
        yield it


async def _end(it: Daemon) -> None:
    if it.process.returncode is None:
        it.process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await it.process.wait()
    for pid in processes_of(it.root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await it.process.wait()


def processes_of(root: Path) -> list[int]:
    """Return all processes of ours that serve this runtime directory, of whoever's children."""
    found = []
    wanted = f"BALLAST_RUNTIME_DIR={root}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found

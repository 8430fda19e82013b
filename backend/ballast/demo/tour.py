"""The demo's story on a VM that somebody else runs: in another container, for example.

All that it needs are two sockets in the VM's runtime directory: the balloon's QMP, and the shell of
the guest that `ballast launch --keeper` boots. What it tells comes from there, so HOST is what the
worker sees of the guest's memory file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ballast.daemon.paths import VmPaths
from ballast.qmp import client as qmp
from ballast.qmp.resizing import Follow, check_reached
from ballast_images.shell import GuestShell
from ballast_protocol.errors import OperatorError, TimedOutError

USED_SHARE = 0.75
"""How much of its memory the guest writes to, and frees."""

TARGET_SHARE = 0.5
"""What it is asked to shrink to."""

HELD_SHARE = 0.9
"""How much of that the host must hold just after; the guest's kernel begins to report it free."""

RESIZE_SECONDS = 120.0
USE_SECONDS = 300.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Account:
    """What the worker says of a VM at one moment, all in bytes.

    Attributes:
        target_bytes: What the guest should have.
        actual_bytes: What it says that it has.
        given_bytes: What the books hold as given up, the kernel's pages and the agent's blocks.
        host_bytes: What the host holds of the guest's memory.
    """

    target_bytes: int
    actual_bytes: int
    given_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class TourStep:
    """One step of the tour.

    Attributes:
        name: What was done.
        seconds: How long it took.
        before: The account when it began.
        after: The account at its end.
        ok: Whether the host's figure moved as it should.
    """

    name: str
    seconds: float
    before: Account
    after: Account
    ok: bool

    def as_json(self) -> dict[str, object]:
        """Return the step as data."""
        return asdict(self)


DOES = {
    "use": "The guest uses most of its memory, and frees it",
    "shrink": "It is asked to shrink to half",
    "grow": "It is asked to grow again",
    "use-again": "It uses its memory again, and checks every byte",
}
"""What is done in each step."""

Show = Callable[[str, TourStep | None], None]
"""Told the name of a step when it begins, and again with the step when it has ended."""


async def tour(name: str, show: Show, *, wait_seconds: float) -> list[TourStep]:
    """Have a guest use its memory, shrink it, grow it, and have it check every byte it writes.

    Args:
        name: The VM.
        show: Told of each step.
        wait_seconds: How long the VM and its guest may take to be there.

    Raises:
        TimedOutError: The guest is not there in time.
        OperatorError: The guest lost data, or the VM is not one of `ballast launch --keeper`.
    """
    paths = VmPaths(name)
    ram_bytes = await _ram_bytes(paths, wait_seconds)
    async with _guest(paths, wait_seconds) as shell:
        return await _Tour(paths, shell, ram_bytes, show).run()


async def _ram_bytes(paths: VmPaths, wait_seconds: float) -> int:
    """Wait for the guest's driver, and return the machine's size."""
    found: dict[str, Any] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_seconds):
            while True:
                with suppress(OperatorError):
                    found = await _status(paths)
                    if found.get("actual-bytes") is not None and found.get("ram-bytes"):
                        return int(found["ram-bytes"])
                await asyncio.sleep(_POLL_SECONDS)
    state = found.get("state", "it is not served")
    raise TimedOutError(
        f"{paths.name} has no guest with a balloon after {wait_seconds:g} s ({state})",
        hint="Its logs say more: of `ballast launch --keeper`, and of `ballast serve`.",
    )


@asynccontextmanager
async def _guest(paths: VmPaths, wait_seconds: float) -> AsyncIterator[GuestShell]:
    """Connect to the guest's shell and wait until it answers."""
    async with AsyncExitStack() as stack:
        try:
            shell = await stack.enter_async_context(GuestShell.connected(paths.shell))
        except OSError as error:
            raise OperatorError(
                f"cannot reach the guest's shell at {paths.shell}: {error.strerror}",
                hint="The tour is for the guest that `ballast launch VM --keeper` boots.",
            ) from error
        await shell.wait_ready(timeout_s=wait_seconds)
        yield shell


async def _status(paths: VmPaths) -> dict[str, Any]:
    async with qmp.connect(paths.qmp) as client:
        return await client.query("ballast-status")


async def account(paths: VmPaths) -> Account:
    """Ask for a VM's account.

    Raises:
        OperatorError: Its worker does not answer, or the guest's driver is not there.
    """
    found = await _status(paths)
    host, actual = _dig(found, "host", "allocated-bytes"), found.get("actual-bytes")
    if not isinstance(host, int) or not isinstance(actual, int):
        raise OperatorError(f"{paths.name} has no guest with a balloon")
    return Account(
        target_bytes=_number(found.get("target-bytes"), actual),
        actual_bytes=actual,
        given_bytes=_number(_dig(found, "ledger", "bytes")),
        host_bytes=host,
    )


def _dig(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) else default


class _Tour:
    """One tour of one VM."""

    def __init__(self, paths: VmPaths, shell: GuestShell, ram_bytes: int, show: Show) -> None:
        self._paths, self._shell, self._show = paths, shell, show
        self._ram_bytes = ram_bytes
        self._steps: list[TourStep] = []

    async def run(self) -> list[TourStep]:
        ram, used = self._ram_bytes, int(self._ram_bytes * USED_SHARE)
        target = int(ram * TARGET_SHARE) >> 21 << 21
        held = int(used * HELD_SHARE)
        await self._step("use", self._use(used), lambda now: now.host_bytes >= held)
        await self._step("shrink", self._resize(target), lambda now: now.host_bytes <= target)
        await self._step("grow", self._resize(ram), lambda now: now.actual_bytes == ram)
        await self._step("use-again", self._use(used), lambda now: now.host_bytes >= held)
        return self._steps

    async def _step(
        self, name: str, work: Coroutine[Any, Any, None], is_right: Callable[[Account], bool]
    ) -> None:
        """Do something, and see what the host holds after it."""
        self._show(name, None)
        before, started = await account(self._paths), time.monotonic()
        await work
        seconds, after = time.monotonic() - started, await account(self._paths)
        self._steps.append(TourStep(name, seconds, before, after, is_right(after)))
        self._show(name, self._steps[-1])

    async def _use(self, size_bytes: int) -> None:
        """Write memory and read every byte back; the tool fails if one is wrong."""
        await self._shell.run(f"memtool fill --bytes {size_bytes}", timeout_s=USE_SECONDS)

    async def _resize(self, target_bytes: int) -> None:
        request = {"value": target_bytes, "timeout": RESIZE_SECONDS}
        check_reached(await Follow(self._paths.qmp).resize(request))


def tour_table(steps: Sequence[TourStep], **more: Sequence[str]) -> Table:
    """Return the steps as a table, in MiB.

    Args:
        steps: What was done.
        more: Further columns, by title.
    """
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), title="MiB")
    for title in ("STEP", "SECONDS", "TARGET", "ACTUAL", "BOOKS", "HOST", "", *more):
        table.add_column(title, justify="left" if title == "STEP" else "right", no_wrap=True)
    for number, step in enumerate(steps):
        now = step.after
        table.add_row(
            step.name,
            f"{step.seconds:.2f}",
            *(str(size >> 20) for size in (now.target_bytes, now.actual_bytes, now.given_bytes)),
            f"{step.before.host_bytes >> 20} → {now.host_bytes >> 20}",
            "[green]ok[/green]" if step.ok else "[red]not ok[/red]",
            *(column[number] for column in more.values()),
        )
    return table

"""Has a daemon's worker replaced by the version that is installed, and says what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ballast.qmp import client as qmp
from ballast_protocol.errors import OperatorError, TimedOutError

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Upgraded:
    """A worker that was replaced.

    Attributes:
        old_pid: The process that served before.
        new_pid: The one that serves now.
        gap_seconds: How long nobody served.
    """

    old_pid: int
    new_pid: int
    gap_seconds: float | None


async def keeper_status(socket: Path) -> Mapping[str, object]:
    """Return what a VM's daemon says of its keeper.

    Raises:
        OperatorError: It does not answer.
    """
    async with qmp.connect(socket) as client:
        keeper = (await client.query("ballast-status")).get("keeper")
    if not isinstance(keeper, Mapping):
        raise OperatorError("this daemon is of a version that cannot be upgraded in place")
    return keeper


async def upgrade(socket: Path, timeout_seconds: float) -> Upgraded:
    """Upgrade the daemon that serves a VM, by the VM's QMP socket.

    Raises:
        OperatorError: It has failed; the version before serves.
        TimedOutError: It did not end in time.
    """
    before = await keeper_status(socket)
    async with qmp.connect(socket) as client:
        await client.execute("ballast-upgrade")
    try:
        async with asyncio.timeout(timeout_seconds):
            after = await _outcome(socket, before)
    except TimeoutError:
        raise TimedOutError(
            f"the upgrade did not end within {timeout_seconds:g} s",
            hint="The daemon's log says how far it is.",
        ) from None
    if error := after.get("upgrade-error"):
        raise OperatorError(
            f"the upgrade has failed: {error}",
            hint="The version before serves. The daemon's log may say more.",
        )
    gap = after.get("last-gap-seconds")
    return Upgraded(
        _number(before, "worker-pid"),
        _number(after, "worker-pid"),
        float(gap) if isinstance(gap, float | int) else None,
    )


async def _outcome(socket: Path, before: Mapping[str, object]) -> Mapping[str, object]:
    """Ask until another attempt is counted; while workers change, nobody answers."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            now = await keeper_status(socket)
        except OperatorError:
            continue
        if _number(now, "upgrade-attempts") > _number(before, "upgrade-attempts"):
            return now


def _number(values: Mapping[str, object], key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) else 0

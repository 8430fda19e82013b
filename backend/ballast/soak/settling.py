"""Waits until a guest has come to rest, and compares its balloon with the books, page for page."""

from __future__ import annotations

import asyncio
import time

from ballast.soak.lab import Lab
from ballast_protocol.errors import TimedOutError

SETTLE_SECONDS = 180.0
LOOK_SECONDS = 0.05
KPF_HUGE = 17
"""Bit of a page of the guest's pool of huge pages in /proc/kpageflags, which is all its agent's."""

INSIST_SECONDS = 15.0
"""How often the target is repeated for a guest that was short of memory and keeps what it got."""

ATTEMPTS = 10
"""The guest's compaction may move a page between the two looks; it does not do so for ever."""


async def settle(lab: Lab) -> None:
    """Wait until the guest has the size that it was last asked for.

    Raises:
        TimedOutError: It does not get there.
        OperatorError: QEMU has ended.
    """
    now = time.monotonic()
    deadline, insist_at = now + SETTLE_SECONDS, now
    while True:
        status = await lab.status()
        if status["settled"] and status["state"] == "running":
            return
        now = time.monotonic()
        if now > deadline:
            raise TimedOutError(f"the guest did not reach its target: {status}")
        if status["blocks"]["yielded-bytes"] and now >= insist_at:
            insist_at = now + INSIST_SECONDS
            await lab.set_target(status["target-bytes"])
        lab.check_alive()
        await asyncio.sleep(LOOK_SECONDS)


async def agent_ready(lab: Lab) -> float:
    """Wait until the agent in the guest can hand over blocks; return when that was.

    Raises:
        TimedOutError: It cannot.
        OperatorError: QEMU has ended.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while (obstacle := (await lab.status())["blocks"]["obstacle"]) is not None:
        if time.monotonic() > deadline:
            raise TimedOutError(f"the agent takes no blocks: {obstacle}")
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic()


async def compare_books(lab: Lab) -> bool:
    """Return whether the guest's pages are those in the books: its balloon's and its agent's."""
    for _ in range(ATTEMPTS):
        books = await lab.ask("ballast-ledger")
        found = await lab.memtool("ballooned")
        huge = await lab.memtool(f"ballooned --bit {KPF_HUGE}")
        kernel_agrees = _runs(books["runs"]) == _runs(found["runs"])
        if kernel_agrees and _runs(books["block-runs"]) == _runs(huge["runs"]):
            return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


def _runs(runs: object) -> list[tuple[int, int]]:
    """Return runs in one shape."""
    assert isinstance(runs, list)
    return [(int(first), int(count)) for first, count in runs]

"""The commands that QEMU does not have; all of their names begin with `ballast-`."""

from __future__ import annotations

from typing import Annotated, Literal

from ballast.qmp import results
from ballast.qmp.guest_stats import named_stats
from ballast.qmp.registry import Context, command
from ballast_protocol.qmp import RefusedError
from ballast_protocol.qmp.types import ANY, EMPTY

MAX_TIMEOUT_SECONDS = 60.0
"""A client's next command waits for this one, so none may ask for more patience than that."""

Timeout = Annotated[float, "Seconds that the guest may take: more than 0, at most 60; else 5."]


def check_timeout(timeout: float) -> None:
    """Check how long a client wants to wait.

    Raises:
        RefusedError: That is no time, or too long.
    """
    if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
        raise RefusedError(
            f"Parameter 'timeout' expects seconds, more than 0 and at most {MAX_TIMEOUT_SECONDS:g}"
        )


@command("ballast-status", returns=results.STATUS)
async def ballast_status(context: Context) -> object:
    """Return everything that is known about the VM's memory."""
    vm = context.vm
    return {
        "name": vm.name,
        "ram-bytes": vm.ram_bytes,
        "target-bytes": vm.target_bytes,
        "actual-bytes": vm.actual_bytes,
        "resizing": vm.governor.status(),
        **vm.status(),
        "qmp": context.socket_status(),
        "keeper": vm.kept.status(),
    }


@command("ballast-stats", returns=results.BALLAST_STATS)
async def ballast_stats(
    context: Context,
    *,
    fresh: Annotated[bool, "Ask the guest for new ones first. Not by default."] = False,
    max_age: Annotated[
        float | None, "Ask the guest if they are older than so many seconds, or never came."
    ] = None,
    timeout: Timeout = 5.0,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Return the guest's statistics with their age; `TimedOut` if new ones do not come in time.

    What is returned is never older than was asked for: if the guest does not answer, that is an
    error. Ask without `fresh` and `max-age` for what it sent last.
    """
    check_timeout(timeout)
    if max_age is not None and not max_age >= 0:
        raise RefusedError("Parameter 'max-age' expects seconds, 0 or more")
    vm, age = context.vm, context.vm.stats_age_seconds
    is_asked = fresh or (max_age is not None and (age is None or age > max_age))
    if is_asked:
        await vm.refresh_stats(timeout)
    return {
        "stats": named_stats(vm.guest_stats),
        "last-update": vm.guest_stats.last_update,
        "age-seconds": vm.stats_age_seconds,
        "fresh": is_asked,
    }


@command("ballast-ledger", returns=results.LEDGER)
async def ballast_ledger(context: Context) -> object:
    """Return the pages that the guest's kernel has given up, and those that its agent has."""
    blocks = context.vm.blocks
    return {
        "runs": [[first, count] for first, count in context.vm.ledger_runs()],
        "block-runs": [] if blocks is None else [[*run] for run in blocks.runs()],
    }


@command("ballast-free-page-hint", returns=EMPTY)
async def ballast_free_page_hint(
    context: Context, *, action: Annotated[Literal["start", "stop"], "What to do."]
) -> object:
    """Start or end a round of free-page hints, for VMs served with `--free-page-hint`."""
    if action == "start":
        context.vm.start_hinting()
    else:
        context.vm.stop_hinting()
    return {}


@command("ballast-report", returns=ANY)
async def ballast_report(
    context: Context,
    *,
    timeout: Timeout = 5.0,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Return a fresh memory report of the agent in the guest; `TimedOut` if none comes in time."""
    check_timeout(timeout)
    return await context.vm.request_agent_report(timeout)

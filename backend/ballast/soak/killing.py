"""Kills the worker at random moments of everything that a guest and its operators do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ballast.soak.actions import Actions
from ballast.soak.lab import Lab
from ballast.soak.rings import GuestMemory, Ring, gap_seconds
from ballast.soak.settling import agent_ready, compare_books, settle
from ballast.soak.verifier import Verdict, Verifier
from ballast_protocol.errors import OperatorError, TimedOutError

VERIFIED_SHARE = 0.15
"""How much of the guest's RAM is verified all the time; it must fit beside the smallest target."""

LONGEST_DELAY_SECONDS = {"report": 2.5, "reboot": 4.0, "sweep": 2.0}
"""Until when, after an action began, its kill may come."""

USUAL_DELAY_SECONDS = 0.5
"""The same for actions that are not named there."""

WATCHED_RINGS = (0, 1)
"""Inflate and deflate (virtio 1.3, section 5.5.2); the statistics queue holds a buffer always."""

SUCCESSOR_SECONDS = 60.0
ACTION_SECONDS = 300.0
LOOK_SECONDS = 0.02


@dataclass
class Kill:
    """One worker's end.

    Attributes:
        action: What was under way.
        delay_seconds: How long after it had begun.
        gap_seconds: Until the guest got a buffer back; None if it was waiting for none.
        agent_gap_seconds: Until the agent in the guest could hand over blocks again; None if it
            could not before, or is not to.
        was_stopped: Stopped for a while, not killed.
    """

    action: str
    delay_seconds: float
    gap_seconds: float | None = None
    agent_gap_seconds: float | None = None
    was_stopped: bool = False


@dataclass
class Outcome:
    """How a soak went.

    Attributes:
        kills: Every kill and stop.
        ledger_mismatches: How often guest and books did not agree page for page afterwards.
        verdict: What the guest found of its memory.
        failure: What ended the soak early; empty if nothing did.
    """

    kills: list[Kill] = field(default_factory=list)
    ledger_mismatches: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    failure: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing was lost."""
        return not (self.failure or self.ledger_mismatches or self.verdict.wrong_bytes)


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        kills: How many workers to kill.
        stops: How many to stop with SIGSTOP instead, in between.
        stop_seconds: For how long.
        seed: Where the random numbers begin.
        agent_blocks: The agent in the guest hands over blocks, and sweeps.
    """

    kills: int
    stops: int = 0
    stop_seconds: float = 10.0
    seed: int = 1
    agent_blocks: bool = False


class Killing:
    """One soak."""

    def __init__(self, lab: Lab, plan: Plan, advance: Callable[[float], None]) -> None:
        self._lab = lab
        self._plan = plan
        self._advance = advance
        self._choose = random.Random(plan.seed)
        self._verifier = Verifier(lab, int(lab.memory_bytes * VERIFIED_SHARE))
        self._actions = Actions(lab, self._verifier, self._choose, agent_blocks=plan.agent_blocks)
        self.outcome = Outcome(verdict=self._verifier.verdict)

    async def run(self) -> Outcome:
        """Kill as planned; what goes wrong ends it and is in the outcome."""
        total = self._plan.kills + self._plan.stops
        stops = set(self._choose.sample(range(total), self._plan.stops))
        try:
            if self._plan.agent_blocks:
                await agent_ready(self._lab)
            await self._verifier.start()
            with GuestMemory(self._lab.vm.pid, self._lab.memory_bytes) as memory:
                for number, action in enumerate(self._actions.plan(total)):
                    await self._one(memory, action, is_stop=number in stops)
                    self._advance((number + 1) / total)
            await self._verifier.stop()
        except OperatorError as error:
            self.outcome.failure = f"{error}\nThe daemon's log ends with:\n{self._lab.log_tail()}"
        finally:
            self._verifier.cancel()
        return self.outcome

    async def _one(self, memory: GuestMemory, action: str, *, is_stop: bool) -> None:
        """Begin an action, kill the worker in the middle of it, and look at what is left."""
        await self._actions.prepare(action)
        pid = await self._lab.worker_pid()
        # A guest that reboots has other rings afterwards, which nobody can see coming.
        rings = [] if action == "reboot" else await self._rings(memory)
        longest = LONGEST_DELAY_SECONDS.get(action, USUAL_DELAY_SECONDS)
        delay = self._choose.uniform(0.0, longest)
        kill = Kill(action, delay, was_stopped=is_stop)
        self.outcome.kills.append(kill)
        task = asyncio.create_task(self._actions.run(action))
        try:
            await asyncio.sleep(delay)
            if is_stop:
                await self._stop_for_a_while(pid)
            else:
                os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
                kill.gap_seconds = await gap_seconds(rings, killed_at)
                await self._successor(pid)
                if self._plan.agent_blocks and action != "reboot":
                    kill.agent_gap_seconds = await agent_ready(self._lab) - killed_at
            await _within(ACTION_SECONDS, task, f"{action}, during which the worker was killed")
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OperatorError):
                await task
        await settle(self._lab)
        self.outcome.ledger_mismatches += not await compare_books(self._lab)

    async def _rings(self, memory: GuestMemory) -> list[Ring]:
        status = await self._lab.status()
        described = (status["transport"]["connection"] or {}).get("rings", [])
        return memory.rings(described, WATCHED_RINGS)

    async def _stop_for_a_while(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._plan.stop_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _successor(self, pid: int) -> None:
        """Wait for another worker.

        Raises:
            TimedOutError: There is none.
        """
        deadline = time.monotonic() + SUCCESSOR_SECONDS
        while await self._lab.worker_pid() == pid:
            if time.monotonic() > deadline:
                raise TimedOutError(f"nobody has taken over from worker {pid}")
            await asyncio.sleep(LOOK_SECONDS)


async def _within(seconds: float, work: asyncio.Task[None], what: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.shield(work)
    except TimeoutError:
        raise TimedOutError(f"this took longer than {seconds:g} s: {what}") from None


def percentiles(all_gaps: Iterable[float | None]) -> dict[str, float | None]:
    """Return the median and the 99th percentile of the gaps in seconds; None without any."""
    gaps = sorted(gap for gap in all_gaps if gap is not None)
    if not gaps:
        return {"p50": None, "p99": None}
    return {"p50": _percentile(gaps, 50), "p99": _percentile(gaps, 99)}


def _percentile(ordered: list[float], percent: int) -> float:
    """Return the value that so many percent do not exceed (nearest rank)."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


def as_json(outcome: Outcome, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome for machines."""
    killed = [kill for kill in outcome.kills if not kill.was_stopped]
    return {
        "ok": outcome.is_ok,
        "kills": len(killed),
        "stops": len(outcome.kills) - len(killed),
        "ledger_mismatches": outcome.ledger_mismatches,
        "bytes_verified": outcome.verdict.verified_bytes,
        "bytes_wrong": outcome.verdict.wrong_bytes,
        "gap_seconds": percentiles(kill.gap_seconds for kill in killed),
        "agent_gap_seconds": percentiles(kill.agent_gap_seconds for kill in killed),
        "gaps_measured": sum(kill.gap_seconds is not None for kill in killed),
        "failure": outcome.failure,
        "machine": facts,
        "all": [
            {
                "action": kill.action,
                "delay_seconds": round(kill.delay_seconds, 4),
                "gap_seconds": kill.gap_seconds,
                "agent_gap_seconds": kill.agent_gap_seconds,
                "stopped": kill.was_stopped,
            }
            for kill in outcome.kills
        ],
    }

"""A storm: everything that moves a guest's memory at once, for minutes, and a check now and then.

Several processes hold memory and verify it, free it and take it anew; others fill and empty a
tmpfs; the guest's memory is compacted, its balloon resized up and down, free memory swept; and the
agent is killed at random. Every so often all but the verifying processes rest, until the guest has
reached its size, and the books are compared with the guest, page for page.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ballast.soak.lab import Lab
from ballast.soak.settling import compare_books, settle
from ballast.soak.verifier import Verdict, Verifier
from ballast_images.shell import CommandFailedError
from ballast_protocol.errors import OperatorError, TimedOutError

VERIFIED_SHARE = 0.25
VERIFIERS = 3
LOWEST_SHARE = 0.6
"""The smallest target, as a share of the guest's RAM: all that it verifies and churns fits in."""

CHECK_SECONDS = 30.0
CHURN = "head -c 40000000 /dev/urandom > /tmp/churn && cat /tmp/churn > /dev/null; rm -f /tmp/churn"
COMPACT = "echo 1 > /proc/sys/vm/compact_memory"
KILL_AGENT = (
    "for n in $(seq 200); do"
    " pids=$(grep -sla '[b]allast-agent.pyz' /proc/[0-9]*/cmdline | cut -d/ -f3);"
    ' [ -n "$pids" ] && kill -9 $pids && exit; sleep 0.1; done; exit 1'
)
"""Kills the agent, once one runs; the guest has no pkill. The brackets spare the shell itself."""
OOM_KILLS = "awk '$1 == \"oom_kill\" {print $2}' /proc/vmstat"
PAGE_BYTES = 4096


@dataclass
class StormOutcome:
    """How a storm went.

    Attributes:
        seconds: How long it lasted.
        verdict: What the guest found of its memory.
        oom_kills: Processes that the guest's kernel killed for want of memory.
        ledger_mismatches: How often guest and books did not agree page for page at a check.
        checks: How often they were compared.
        restless: How often a check had to do without, because the guest did not come to rest.
        done: How often each disturbance was caused.
        failure: What ended the storm early; empty if nothing did.
    """

    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    oom_kills: int = 0
    ledger_mismatches: int = 0
    checks: int = 0
    restless: int = 0
    done: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing was lost, and something was compared."""
        lost = self.verdict.wrong_bytes or self.oom_kills or self.ledger_mismatches
        return not (self.failure or lost) and self.checks > 0

    def as_json(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the outcome for machines."""
        return {
            "ok": self.is_ok,
            "seconds": self.seconds,
            "bytes_verified": self.verdict.verified_bytes,
            "bytes_wrong": self.verdict.wrong_bytes,
            "oom_kills": self.oom_kills,
            "ledger_mismatches": self.ledger_mismatches,
            "agent_kills": self.done.get("agent-kill", 0),
            "checks": self.checks,
            "restless": self.restless,
            "disturbances": self.done,
            "failure": self.failure,
            "machine": facts,
        }


class Storm:
    """One storm."""

    def __init__(
        self, lab: Lab, seconds: float, seed: int, advance: Callable[[float], None]
    ) -> None:
        self._lab = lab
        self._seconds = seconds
        self._advance = advance
        self._choose = random.Random(seed)
        self._verifier = Verifier(lab, int(lab.memory_bytes * VERIFIED_SHARE), VERIFIERS)
        self._calm = asyncio.Event()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.outcome = StormOutcome(verdict=self._verifier.verdict)

    async def run(self) -> StormOutcome:
        """Let it rage as long as planned; what goes wrong ends it and is in the outcome."""
        started = time.monotonic()
        try:
            before = await self._oom_kills()
            await self._verifier.start()
            async with self._disturbances():
                while (passed := time.monotonic() - started) < self._seconds:
                    self._advance(passed / self._seconds)
                    await asyncio.sleep(min(CHECK_SECONDS, self._seconds - passed))
                    await self._check()
            await self._verifier.stop()
            self.outcome.oom_kills = await self._oom_kills() - before
        except* OperatorError as group:
            reasons = "; ".join(map(str, group.exceptions))
            self.outcome.failure = f"{reasons}\nThe daemon's log ends with:\n{self._lab.log_tail()}"
        finally:
            self._verifier.cancel()
            self.outcome.seconds = time.monotonic() - started
        return self.outcome

    @contextlib.asynccontextmanager
    async def _disturbances(self) -> AsyncIterator[None]:
        """Cause all of them side by side until the context ends."""
        self._calm.clear()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._again_and_again(name, action, pause))
                for name, action, pause in (
                    ("resize", self._resize, 2.0),
                    ("sweep", self._sweep, 6.0),
                    ("churn", lambda: self._in_guest(CHURN), 1.0),
                    ("compaction", lambda: self._in_guest(COMPACT), 5.0),
                    ("agent-kill", self._kill_agent, 8.0),
                )
            ]
            yield
            for task in tasks:
                task.cancel()

    async def _again_and_again(
        self, name: str, action: Callable[[], Awaitable[None]], pause_seconds: float
    ) -> None:
        while True:
            await asyncio.sleep(self._choose.uniform(0.2, 2.0) * pause_seconds)
            if self._calm.is_set():
                continue
            self._busy += 1
            self._idle.clear()
            try:
                await action()
            finally:
                self._busy -= 1
                if not self._busy:
                    self._idle.set()
            self.outcome.done[name] = self.outcome.done.get(name, 0) + 1

    async def _resize(self) -> None:
        share = self._choose.uniform(LOWEST_SHARE, 1.0)
        await self._lab.set_target(int(self._lab.memory_bytes * share) // PAGE_BYTES * PAGE_BYTES)

    async def _sweep(self) -> None:
        """Sweep; an agent that was just killed, or has other things to do, may refuse."""
        with contextlib.suppress(OperatorError):
            await self._lab.ask("ballast-sweep", {"timeout": 8.0})

    async def _kill_agent(self) -> None:
        await self._lab.vm.shell.run(KILL_AGENT, timeout_s=120.0)

    async def _in_guest(self, command: str) -> None:
        """Run a command that may find nothing to do."""
        with contextlib.suppress(CommandFailedError):
            await self._lab.vm.shell.run(command, timeout_s=120.0)

    async def _check(self) -> None:
        """Have everything rest and compare the books."""
        self._calm.set()
        try:
            await self._idle.wait()
            await settle(self._lab)
            self.outcome.ledger_mismatches += not await compare_books(self._lab)
            self.outcome.checks += 1
        except TimedOutError:
            self.outcome.restless += 1
        finally:
            self._calm.clear()

    async def _oom_kills(self) -> int:
        return int((await self._lab.vm.shell.run(OOM_KILLS)).stdout)

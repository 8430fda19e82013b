"""A VM's balloon without a VM: does what it is told at once, and remembers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ballast.daemon.governor import GovernorLoop
from ballast.daemon.kept import Kept
from ballast.policy.governor import Governor
from ballast.policy.resize import Observation
from ballast_protocol.errors import OperatorError, TimedOutError

MIB = 1 << 20

NOW_SECONDS = 1012.5
"""The time at which the age of statistics is told."""


@dataclass
class FakeStats:
    values: dict[int, int] = field(default_factory=dict)
    last_update: int = 0


@dataclass
class FakeBlocks:
    """Implements `ballast.qmp.control.BlocksControl`.

    Attributes:
        obstacle: Why the agent refuses; empty if it does not.
        asked: What it was asked for.
        shares: What nodes are to contribute.
    """

    obstacle: str = ""
    asked: list[tuple[str, int | None, float]] = field(default_factory=list)
    shares: dict[int, int] = field(default_factory=lambda: {0: 0})

    async def sweep(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        self._ask("sweep", node, timeout_seconds)
        return {
            "seconds": 0.25,
            "reason": "nothing more is free",
            "tried-blocks": 4,
            "isolated-blocks": 3,
            "reported-bytes": 6 * MIB,
            "freed-bytes": 5 * MIB,
        }

    async def compact(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        self._ask("compact", node, timeout_seconds)
        return {"seconds": 0.5, "blocks-before": 10, "blocks-after": 30}

    def _ask(self, what: str, node: int | None, timeout_seconds: float) -> None:
        if self.obstacle:
            raise OperatorError(f"the agent in this guest takes no blocks: {self.obstacle}")
        self.asked.append((what, node, timeout_seconds))

    def nodes(self) -> Sequence[Mapping[str, object]]:
        return [
            {
                "node": node,
                "total-bytes": 1024 * MIB,
                "free-bytes": 512 * MIB,
                "free-blocks": 200,
                "held-bytes": 64 * MIB,
                "sweep-bytes": 0,
                "agent-held-bytes": 64 * MIB,
                "under-way-bytes": 0,
                "share-bytes": share,
            }
            for node, share in self.shares.items()
        ]

    def set_share(self, node: int, size_bytes: int) -> None:
        self.shares[node] = size_bytes

    def runs(self) -> Sequence[tuple[int, int]]:
        return [(512, 1024)]


@dataclass
class FakeBalloonControl:
    """Implements `ballast.qmp.control.BalloonControl`, with a real governor.

    Attributes:
        follows: Whether the guest does what it is told, at once.
        fresh_values: What the guest sends when asked for statistics; None if it does not answer.
        report: What the agent answers; None if there is no agent.
        gate: If set, `request_agent_report` waits for it.
        hinting: What happened to hinting.
        ledger: The pages that the guest has given up.
        is_inhibited: Nothing is given back.
        events: What operators were told, besides `on_event`.
        on_event: Told of each event.
    """

    name: str = "vm1"
    ram_bytes: int | None = 2048 * MIB
    actual_bytes: int | None = 2048 * MIB
    target_bytes: int | None = None
    guest_stats: FakeStats = field(default_factory=FakeStats)
    stats_polling_interval: int = 0
    follows: bool = True
    fresh_values: dict[int, int] | None = None
    report: dict[str, object] | None = None
    gate: asyncio.Event | None = None
    hinting: list[str] = field(default_factory=list)
    smallest_target_bytes: int = 0
    ledger: Sequence[tuple[int, int]] = ()
    blocks: FakeBlocks | None = None
    extra_status: dict[str, object] = field(default_factory=dict)
    is_inhibited: bool = False
    events: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    on_event: Callable[[str, Mapping[str, object]], None] = lambda name, data: None
    kept: Kept = field(default_factory=Kept)
    governor: GovernorLoop = field(init=False)

    def __post_init__(self) -> None:
        self.governor = GovernorLoop(self, Governor())

    def observe(self) -> Observation:
        return Observation(
            is_connected=self.ram_bytes is not None,
            is_running=self.actual_bytes is not None,
            ram_bytes=self.ram_bytes,
            actual_bytes=self.actual_bytes,
        )

    def ask(self, size_bytes: int | None) -> None:
        ram_bytes = self.ram_bytes or (1 << 62)
        size_bytes = min(ram_bytes if size_bytes is None else size_bytes, ram_bytes)
        self.target_bytes = -(-size_bytes // 4096) * 4096
        if self.follows and self.actual_bytes is not None:
            self.actual_bytes = self.target_bytes

    def set_inhibited(self, inhibited: bool) -> None:
        self.is_inhibited = inhibited

    def emit(self, name: str, data: Mapping[str, object]) -> None:
        self.events.append((name, data))
        self.on_event(name, data)

    def set_target(self, target_bytes: int) -> None:
        if target_bytes < self.smallest_target_bytes:
            raise OperatorError("below the floor", hint="lower the floor first")
        self.governor.set_target(target_bytes)

    @property
    def stats_age_seconds(self) -> float | None:
        last_update = self.guest_stats.last_update
        return NOW_SECONDS - last_update if last_update else None

    async def refresh_stats(self, timeout_seconds: float) -> None:
        if self.fresh_values is None:
            raise TimedOutError(f"no statistics within {timeout_seconds:g} s")
        self.guest_stats = FakeStats(self.fresh_values, 1000)

    def status(self) -> Mapping[str, object]:
        return self.extra_status

    def ledger_runs(self) -> Sequence[tuple[int, int]]:
        return self.ledger

    def start_hinting(self) -> None:
        self.hinting.append("start")

    def stop_hinting(self) -> None:
        self.hinting.append("stop")

    async def request_agent_report(self, timeout_seconds: float) -> Mapping[str, object]:
        if self.gate is not None:
            await self.gate.wait()
        if self.report is None:
            raise OperatorError("no agent is connected")
        return {**self.report, "asked-seconds": timeout_seconds}

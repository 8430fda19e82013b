"""What a guest and its operators do while a worker is killed: one action at a time, at random."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from ballast.soak.lab import Lab
from ballast.soak.settling import settle
from ballast.soak.verifier import Verifier
from ballast_protocol.errors import OperatorError

LOWEST_SHARE = 0.45
"""The smallest target, as a share of the guest's RAM; what it verifies must fit beside."""

LOWEST_SHARE_OF_AGENTS = 0.6
"""The same where the agent takes blocks: it leaves a reserve, and lets go under pressure."""

DIRTY_SHARE = 0.25
PAUSES = 4
SWEEP_SECONDS = 8.0
TARGETS = 40
PAGE_BYTES = 4096


class Actions:
    """Everything that can be under way when the worker dies."""

    def __init__(
        self, lab: Lab, verifier: Verifier, choose: random.Random, *, agent_blocks: bool = False
    ) -> None:
        self._lab = lab
        self._lowest_share = LOWEST_SHARE_OF_AGENTS if agent_blocks else LOWEST_SHARE
        self._verifier = verifier
        self._choose = choose
        self._all: dict[str, Callable[[], Awaitable[None]]] = {
            "inflate": self.inflate,
            "deflate": self.deflate,
            "report": self.report,
            "config-change": self.change_config,
            "reboot": self.reboot,
            "pause": self.pause,
        }
        if agent_blocks:
            self._all["sweep"] = self.sweep

    @property
    def names(self) -> tuple[str, ...]:
        """What there is."""
        return tuple(self._all)

    def plan(self, count: int) -> list[str]:
        """Return `count` actions: each as often as any other, in random order."""
        names = [self.names[number % len(self.names)] for number in range(count)]
        self._choose.shuffle(names)
        return names

    async def prepare(self, name: str) -> None:
        """Bring the guest to where an action begins, so that a kill falls into the action itself.

        Raises:
            TimedOutError: The guest does not get there.
        """
        is_full = name not in ("deflate", "pause")
        await self._lab.set_target(self._lab.memory_bytes if is_full else self._low_target())
        await settle(self._lab)
        if name in ("inflate", "report", "sweep"):
            await self._dirty()

    async def run(self, name: str) -> None:
        """Do one of them to its end."""
        await self._all[name]()

    async def inflate(self) -> None:
        """Have the guest give up a large part of the memory that it has used."""
        await self._lab.set_target(self._low_target())

    async def deflate(self) -> None:
        """Have the guest take all of its memory back."""
        await self._lab.set_target(self._lab.memory_bytes)

    async def report(self) -> None:
        """Give the guest's kernel time to report what it has used and freed."""
        await asyncio.sleep(2.5)

    async def change_config(self) -> None:
        """Change the target again and again."""
        for _ in range(TARGETS):
            await self._lab.set_target(self._low_target())

    async def reboot(self) -> None:
        """Reboot the guest: the driver goes, and another one comes."""
        await self._verifier.stop()
        await self._lab.vm.shell.reboot()
        await self._verifier.start()

    async def pause(self) -> None:
        """Pause and resume the guest, with pages on the move."""
        await self._lab.set_target(self._low_target())
        for _ in range(PAUSES):
            await self._lab.vm.qmp.execute("stop")
            with contextlib.suppress(TimeoutError):
                await asyncio.sleep(self._choose.uniform(0.0, 0.1))
            await self._lab.vm.qmp.execute("cont")
            await asyncio.sleep(self._choose.uniform(0.0, 0.1))

    async def sweep(self) -> None:
        """Have the agent report what is free and take it back; a worker's end is a sweep's."""
        with contextlib.suppress(OperatorError):
            await self._lab.ask("ballast-sweep", {"timeout": SWEEP_SECONDS})

    async def _dirty(self) -> None:
        await self._lab.memtool(f"dirty --bytes {int(self._lab.memory_bytes * DIRTY_SHARE)}")

    def _low_target(self) -> int:
        share = self._choose.uniform(self._lowest_share, 0.9)
        return int(self._lab.memory_bytes * share) // PAGE_BYTES * PAGE_BYTES

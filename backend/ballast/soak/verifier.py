"""A process in the guest that holds memory and compares every byte of it, again and again."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from ballast.soak.lab import Lab
from ballast_protocol.errors import OperatorError

STOP_FILE = "/run/soak-stop"
DAY_SECONDS = 86_400.0
PAGE_BYTES = 4096


@dataclass
class Verdict:
    """What was found.

    Attributes:
        verified_bytes: How much was compared.
        wrong_bytes: How much of it differed, in whole pages.
    """

    verified_bytes: int = 0
    wrong_bytes: int = 0

    def add(self, found: dict[str, int]) -> None:
        """Take what a run of memtool says in."""
        self.verified_bytes += found["verified_bytes"]
        self.wrong_bytes += found["wrong_pages"] * PAGE_BYTES


class Verifier:
    """Several such processes, which free and take their memory anew after each pass.

    Attributes:
        verdict: What those found that have ended.
    """

    def __init__(self, lab: Lab, size_bytes: int, count: int = 1) -> None:
        """Verify with `count` processes, each of which holds its share of `size_bytes`."""
        self._lab = lab
        self._size_bytes = size_bytes // count // PAGE_BYTES * PAGE_BYTES
        self._count = count
        self._seeds = itertools.count(1, 1000)
        self._running: list[asyncio.Task[dict[str, int]]] = []
        self.verdict = Verdict()

    async def start(self) -> None:
        """Start them all."""
        await self._lab.vm.shell.run(f"mkdir -p /run && rm -f {STOP_FILE}")
        self._running = [
            asyncio.create_task(
                self._lab.memtool(
                    f"verify-loop --bytes {self._size_bytes} --seed {next(self._seeds)} "
                    f"--remap --stop-file {STOP_FILE}",
                    timeout_s=DAY_SECONDS,
                )
            )
            for _ in range(self._count)
        ]

    async def stop(self) -> None:
        """Have them end, and take in what they found.

        Raises:
            OperatorError: One of them has died.
        """
        await self._lab.vm.shell.run(f"touch {STOP_FILE}", timeout_s=120.0)
        results = await asyncio.gather(*self._running, return_exceptions=True)
        self._running = []
        for each in results:
            if isinstance(each, BaseException):
                raise OperatorError(f"a verifying process in the guest died: {each}") from each
            self.verdict.add(each)

    def cancel(self) -> None:
        """Wait for them no longer."""
        for task in self._running:
            task.cancel()

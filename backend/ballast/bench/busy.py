"""Guests that inflate and deflate without pause: `python -m ballast.bench.busy SOCKET...`.

A process of its own, so that what it does does not delay what is measured beside it. It says
`ready` once all are connected, begins at the first line on its standard input, and at the second
ends and says in JSON what it has done.
"""

from __future__ import annotations

import json
import resource
import select
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from ballast.bench.frontend import FIRST_PFN, Frontend, Memory, pack_arrays
from ballast.bench.patterns import descending

GUEST_BYTES = 16 << 20
"""RAM of each; enough for a ring that is never empty, and little enough for hundreds."""


class Guest:
    """One of them: gives all of its memory up, takes it back, and has the host hold it again."""

    def __init__(self, socket: Path) -> None:
        self._memory = Memory(GUEST_BYTES)
        self._arrays = pack_arrays(descending(FIRST_PFN, self._memory.last_pfn))
        self._frontend = Frontend(socket, self._memory)
        self._is_inflating = False
        self.inflated_bytes = 0

    def go_on(self) -> None:
        """Begin with the next half of the cycle if the one before is over; never waits."""
        inflate, deflate = self._frontend.rings
        if (inflate if self._is_inflating else deflate).in_flight:
            return
        if self._is_inflating:
            self._count()
            deflate.offer(self._arrays)
        else:
            self._memory.populate()
            inflate.offer(self._arrays)
        self._is_inflating = not self._is_inflating

    def _count(self) -> None:
        self.inflated_bytes += GUEST_BYTES - FIRST_PFN * 4096

    def finish(self) -> None:
        """Wait for what is under way. It counts: of hundreds, each may have done little else."""
        for ring in self._frontend.rings:
            ring.wait(0)
        if self._is_inflating:
            self._count()
            self._is_inflating = False

    def close(self) -> None:
        """Hang up."""
        self._frontend.close()
        self._memory.close()


def main() -> None:
    """Keep the guests of the command line busy until told to stop."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        guests = [Guest(Path(each)) for each in sys.argv[1:]]
        for guest in guests:
            stack.callback(guest.close)
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.monotonic()
        while not select.select([sys.stdin], [], [], 0)[0]:
            for guest in guests:
                guest.go_on()
        for guest in guests:
            guest.finish()
        seconds = time.monotonic() - started
    done = sum(guest.inflated_bytes for guest in guests)
    print(json.dumps({"bytes": done, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

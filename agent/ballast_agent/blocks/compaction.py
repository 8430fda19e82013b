"""Compaction: the kernel moves pages until free ones lie next to each other, in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ballast_agent.blocks.background import Background
from ballast_agent.blocks.kernel import Kernel
from ballast_agent.blocks.supply import supplies
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import ANY_NODE, CompactDone

log = logging.getLogger(__name__)


class Compaction:
    """Has the kernel compact; it can take seconds."""

    def __init__(self, kernel: Kernel, background: Background) -> None:
        self._kernel = kernel
        self._background = background

    def run(self, node: int, done: Callable[[CompactDone], None]) -> None:
        """Compact a node, or all of them for `ANY_NODE`, and call back in the loop."""
        before = self._free_blocks(node)

        def compacted(seconds: float) -> None:
            after = self._free_blocks(node)
            log.info("compaction took %.1f s: %d free blocks became %d", seconds, before, after)
            done(CompactDone(seconds, before, after))

        self._background.submit(lambda: self._compact(node), compacted)

    def _compact(self, node: int) -> None:
        try:
            self._kernel.compact(None if node == ANY_NODE else node)
        except OperatorError as error:
            log.warning("no compaction: %s", error)

    def _free_blocks(self, node: int) -> int:
        try:
            known = supplies(self._kernel)
        except OperatorError:
            return 0
        return sum(each.free_blocks for n, each in known.items() if node in (n, ANY_NODE))

"""Keeps the agent working when the guest's memory is short, which is when it is needed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

NICE = -10


def protect(proc: Path = Path("/proc")) -> None:
    """Keep this process in memory, out of the OOM killer's reach, and ahead of others.

    What is not permitted is logged and done without.
    """
    try:
        from ballast_agent.blocks.libc import lock_memory

        lock_memory()
    except (OSError, ImportError) as error:
        log.warning("the agent cannot be locked in memory: %s", error)
    try:
        (proc / "self/oom_score_adj").write_text("-1000")
    except OSError as error:
        log.warning("the OOM killer may end the agent: %s", error)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError as error:
        log.info("the agent runs with its usual priority: %s", error)

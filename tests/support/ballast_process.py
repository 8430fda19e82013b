"""`ballast` as a process of its own, as operators run it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def ballast_process(
    root: Path, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `ballast` with its runtime directories in `root`, and leave no process behind."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ballast.cli.main", *arguments),
        env={**os.environ, "BALLAST_RUNTIME_DIR": str(root), "NO_COLOR": "1", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()

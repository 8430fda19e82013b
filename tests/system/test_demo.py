"""`ballast demo` as an operator runs it, over each transport."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from ballast.daemon.config import Transport

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600), pytest.mark.asyncio]


async def test_the_demo_keeps_its_promises(transport: Transport, tmp_path: Path) -> None:
    results = tmp_path / "demo.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ballast.cli.main", "demo"),
        *("--transport", transport, "--json", str(results), "--append", "init_on_alloc=0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(300):
        printed, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode() + printed.decode()
    found = json.loads(results.read_text())
    assert found["ok"] is True
    assert found["transport"] == transport

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ballast_agent.blocks.psi import StallAlarm


def test_the_kernel_is_told_what_counts_as_a_stall(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/memory").touch()
    alarm = StallAlarm(tmp_path)
    assert alarm.fd is not None
    assert (tmp_path / "pressure/memory").read_bytes() == b"some 100000 1000000\0"
    alarm.close()
    alarm.close()
    assert alarm.fd is None


def test_kernels_that_do_not_measure_stalls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert StallAlarm(tmp_path).fd is None
    assert "only MemAvailable is" in caplog.text

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ballast_agent.report import introduce, take_report
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import VERSIONS, decode, encode
from ballast_protocol.guest_framing import FrameDecoder

CAPTURED = Path(__file__).parents[1] / "data" / "procfs" / "linux-6.18"
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    copy = tmp_path / "proc"
    shutil.copytree(CAPTURED, copy)
    return copy


def test_a_captured_machine(proc: Path) -> None:
    report = take_report(proc)
    assert [zone.zone for zone in report.zones] == ["DMA", "DMA32", "Normal"]
    dma = report.zones[0]
    assert dma.start_pfn == 1
    assert dma.spanned_bytes == 4095 * PAGE
    assert dma.present_bytes == 3998 * PAGE
    assert dma.managed_bytes == 3840 * PAGE
    assert (dma.min_bytes, dma.low_bytes, dma.high_bytes) == (58 * PAGE, 72 * PAGE, 86 * PAGE)
    assert sum(report.free_bytes_by_order([dma])) == 3840 * PAGE
    assert report.meminfo_bytes["MemTotal"] == 24684084 * 1024
    assert report.pressure is not None
    assert report.boottime_seconds > 0


def test_this_machine_makes_a_report_that_the_host_accepts() -> None:
    report = take_report()
    assert report.zones
    (frame,) = FrameDecoder().feed(encode(report))
    assert decode(frame) == report


def test_a_kernel_without_pressure(proc: Path) -> None:
    shutil.rmtree(proc / "pressure")
    assert take_report(proc).pressure is None


def test_a_zone_that_zoneinfo_does_not_know_yet_is_left_out(proc: Path) -> None:
    buddyinfo = proc / "buddyinfo"
    buddyinfo.write_text(buddyinfo.read_text() + "Node 1, zone   Normal      1      2 \n")
    assert {zone.node for zone in take_report(proc).zones} == {0}


def test_what_cannot_be_read_is_named(proc: Path) -> None:
    (proc / "zoneinfo").unlink()
    with pytest.raises(OperatorError, match="zoneinfo cannot be read: No such file"):
        take_report(proc)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_has_a_hint(proc: Path) -> None:
    (proc / "buddyinfo").chmod(0)
    with pytest.raises(OperatorError) as caught:
        take_report(proc)
    assert caught.value.hint == "run as root"


def test_introduction(proc: Path) -> None:
    hello = introduce(interval_seconds=2.0, proc=proc)
    assert hello.boot_id == (CAPTURED / "sys/kernel/random/boot_id").read_text().strip()
    assert hello.protocol_versions == VERSIONS
    assert hello.interval_seconds == 2.0
    (frame,) = FrameDecoder().feed(encode(hello))
    assert decode(frame) == hello

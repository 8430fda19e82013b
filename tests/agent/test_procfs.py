from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_agent.procfs import (
    ZoneInfo,
    parse_buddyinfo,
    parse_meminfo,
    parse_pressure,
    parse_zoneinfo,
)
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import Pressure, PressureLine

CAPTURED = Path(__file__).parents[1] / "data" / "procfs"

BUDDYINFO_ARM64_64K_TWO_NODES = (
    "Node 0, zone    DMA32     15      9      3      1      2      0      1      0      1      0"
    "      0      0      0      3 \n"
    "Node 0, zone   Normal    807    212     31      4      0      1      0      1      0      1"
    "      0      1      0     60 \n"
    "Node 1, zone   Normal  99999999      0      0      0      0      0      0      0      0"
    "      0      0      0      0      0 \n"
)

# As 4.18 prints it: no boost, promo or cma; the second node has a Movable zone with memory.
ZONEINFO_4_18 = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 2154
      nr_dirtied   30441
      nr_kernel_misc_reclaimable 0
  pages free     3977
        min      66
        low      82
        high     98
        spanned  4095
        present  3998
        managed  3977
        protection: (0, 1882, 1882, 1882, 1882)
      nr_free_pages 3977
      nr_zone_inactive_anon 0
      numa_local   0
  pagesets
    cpu: 0
              count: 0
              high:  0
              batch: 1
  vm stats threshold: 2
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone   Normal
  pages free     0
        min      0
        low      0
        high     0
        spanned  0
        present  0
        managed  0
        protection: (0, 0, 0, 0, 0)
Node 1, zone  Movable
  pages free     500712
        min      8230
        low      10287
        high     12344
        spanned  524288
        present  524288
        managed  507904
        protection: (0, 0, 0, 0, 0)
      nr_free_pages 500712
  pagesets
    cpu: 0
              count: 213
              high:  378
              batch: 63
  vm stats threshold: 28
  node_unreclaimable:  0
  start_pfn:           1310720
"""


def captured(name: str, kernel: str = "linux-6.18") -> str:
    return (CAPTURED / kernel / name).read_text()


def test_buddyinfo_of_6_18() -> None:
    zones = parse_buddyinfo(captured("buddyinfo"))
    assert list(zones) == [(0, "DMA"), (0, "DMA32"), (0, "Normal")]
    assert zones[0, "DMA"] == (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3)


def test_buddyinfo_has_as_many_orders_as_the_kernel() -> None:
    zones = parse_buddyinfo(BUDDYINFO_ARM64_64K_TWO_NODES)
    assert {key: len(counts) for key, counts in zones.items()} == {
        (0, "DMA32"): 14,
        (0, "Normal"): 14,
        (1, "Normal"): 14,
    }
    assert zones[1, "Normal"][0] == 99999999


@pytest.mark.parametrize("text", ["nonsense\n", "Node 0, zone DMA\n", "Node 0, zone DMA 1 x 2\n"])
def test_buddyinfo_that_is_something_else_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match="buddyinfo"):
        parse_buddyinfo(text)


def test_zoneinfo_of_6_18() -> None:
    zones = parse_zoneinfo(captured("zoneinfo"))
    assert list(zones) == [(0, "DMA"), (0, "DMA32"), (0, "Normal")]
    assert zones[0, "DMA32"] == ZoneInfo(
        min=11824,
        low=14780,
        high=17736,
        spanned=1044480,
        present=782336,
        managed=772915,
        start_pfn=4096,
    )


def test_a_movable_zone_of_6_12() -> None:
    free = parse_buddyinfo(captured("buddyinfo", "linux-6.12-movable"))
    zones = parse_zoneinfo(captured("zoneinfo", "linux-6.12-movable"))
    assert list(zones) == list(free) == [(0, "DMA"), (0, "DMA32"), (0, "Movable")]
    assert zones[0, "Movable"].start_pfn == 196608
    assert zones[0, "Movable"].spanned == 65504


def test_zoneinfo_of_4_18_leaves_out_empty_zones() -> None:
    assert parse_zoneinfo(ZONEINFO_4_18) == {
        (0, "DMA"): ZoneInfo(66, 82, 98, 4095, 3998, 3977, 1),
        (1, "Movable"): ZoneInfo(8230, 10287, 12344, 524288, 524288, 507904, 1310720),
    }


def test_meminfo_is_in_bytes_and_counts_are_left_out() -> None:
    meminfo = parse_meminfo(captured("meminfo"))
    assert meminfo["MemTotal"] == 24684084 * 1024
    assert meminfo["SwapTotal"] == 0
    assert "Active(anon)" in meminfo
    assert "HugePages_Total" not in meminfo


def test_pressure() -> None:
    text = (
        "some avg10=12.34 avg60=5.00 avg300=1.07 total=4294967296123\n"
        "full avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"
    )
    assert parse_pressure(text) == Pressure(
        PressureLine(12.34, 5.0, 1.07, 4294967296123), PressureLine(1.5, 0.25, 0.0, 77)
    )
    assert parse_pressure(captured("pressure/memory")).full.avg10 == 0.0


@pytest.mark.parametrize("text", ["", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"])
def test_half_a_pressure_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match="pressure"):
        parse_pressure(text)


@given(st.text())
def test_parsers_survive_anything(text: str) -> None:
    parse_zoneinfo(text)
    parse_meminfo(text)

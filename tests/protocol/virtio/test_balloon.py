"""The balloon's own structures: config space, queue order, statistics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.virtio import balloon
from ballast_protocol.virtio.balloon import (
    STATISTICS,
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    pack_statistics,
    queue_order,
    unpack_statistics,
)

U32 = st.integers(0, 0xFFFF_FFFF)
CONFIGS = st.builds(BalloonConfig, U32, U32, U32, U32)
CONFIG = BalloonConfig(0x20000, 0x10000, 0x8000_0001, 0xAAAA_AAAA)
CONFIG_HEX = "00000200 00000100 01000080 aaaaaaaa"


def test_config_bytes() -> None:
    assert CONFIG.pack() == bytes.fromhex(CONFIG_HEX)
    assert BalloonConfig.unpack(bytes.fromhex(CONFIG_HEX)) == CONFIG
    assert BalloonConfig.SIZE == 16


@given(CONFIGS)
def test_config_round_trip(config: BalloonConfig) -> None:
    assert BalloonConfig.unpack(config.pack()) == config
    assert BalloonConfig.unpack(memoryview(config.pack() + b"beyond")) == config


def test_short_config_reads_as_zero_beyond_its_end() -> None:
    assert BalloonConfig.unpack(CONFIG.pack()[:8]) == BalloonConfig(0x20000, 0x10000)
    assert BalloonConfig.unpack(b"") == BalloonConfig()


@given(CONFIGS, st.integers(0, 40), st.binary(max_size=40))
def test_patched_changes_exactly_the_written_bytes(
    config: BalloonConfig, offset: int, data: bytes
) -> None:
    expected = bytearray(config.pack().ljust(80, b"\0"))
    expected[offset : offset + len(data)] = data
    assert config.patched(offset, data).pack() == bytes(expected[:16])


def test_features_are_the_specifications() -> None:
    assert [feature.name for feature in BalloonFeature] == [
        "MUST_TELL_HOST",
        "STATS_VQ",
        "DEFLATE_ON_OOM",
        "FREE_PAGE_HINT",
        "PAGE_POISON",
        "PAGE_REPORTING",
    ]
    assert sum(BalloonFeature) == 0b11_1111


INF, DEF, STA = BalloonQueue.INFLATE, BalloonQueue.DEFLATE, BalloonQueue.STATS
HINT, REP = BalloonQueue.FREE_PAGE_HINT, BalloonQueue.REPORTING


# As seen with Linux 6.12: an absent queue takes no index.
@pytest.mark.parametrize(
    ("features", "order"),
    [
        (0, (INF, DEF)),
        (0b000010, (INF, DEF, STA)),
        (0b100000, (INF, DEF, REP)),
        (0b100010, (INF, DEF, STA, REP)),
        (0b101010, (INF, DEF, STA, HINT, REP)),
        (0b001000, (INF, DEF, HINT)),
        (0b010101 | 1 << 32, (INF, DEF)),
    ],
)
def test_queue_order(features: int, order: tuple[BalloonQueue, ...]) -> None:
    assert queue_order(features) == order


def test_statistics_table_is_consecutive_and_named_as_qemu_does() -> None:
    assert [statistic.tag for statistic in STATISTICS] == list(range(16))
    assert len({statistic.name for statistic in STATISTICS}) == 16
    assert all(statistic.name.startswith("stat-") for statistic in STATISTICS)
    assert balloon.STATISTIC_BY_TAG[4].name == "stat-free-memory"
    assert balloon.STATISTIC_BY_TAG[15].name == "stat-direct-reclaims"


@pytest.mark.parametrize(
    ("tag", "metric"),
    [(0, "swap_in_bytes_total"), (3, "minor_faults_total"), (6, "available_memory_bytes")],
)
def test_metric_names(tag: int, metric: str) -> None:
    assert balloon.STATISTIC_BY_TAG[tag].metric == metric


def test_metric_names_are_distinct() -> None:
    assert len({statistic.metric for statistic in STATISTICS}) == 16


def test_statistics_buffer_bytes() -> None:
    data = bytes.fromhex("0400 0000004000000000 0f00 0100000000000000")
    assert pack_statistics([(4, 1 << 30), (15, 1)]) == data
    assert list(unpack_statistics(data)) == [(4, 1 << 30), (15, 1)]


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1)), max_size=20),
    st.binary(max_size=9),
)
def test_statistics_round_trip_with_a_torn_end(values: list[tuple[int, int]], torn: bytes) -> None:
    assert list(unpack_statistics(pack_statistics(values) + torn)) == values


def test_a_guest_cannot_make_us_read_statistics_without_end() -> None:
    data = pack_statistics((tag, 0) for tag in range(balloon.MAX_STATISTICS + 100))
    assert len(list(unpack_statistics(data))) == balloon.MAX_STATISTICS

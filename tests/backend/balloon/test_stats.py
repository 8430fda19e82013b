from ballast.balloon.stats import GuestStatistics
from ballast.qmp.guest_stats import named_stats
from ballast_protocol.virtio.balloon import STATISTIC_UNSET, STATISTICS, pack_statistics


def test_before_the_first_buffer_everything_is_unset_as_in_qemu() -> None:
    named = named_stats(GuestStatistics())
    assert len(named) == len(STATISTICS) == 16
    assert set(named.values()) == {STATISTIC_UNSET}


def test_a_buffer_replaces_the_values_and_is_held() -> None:
    statistics = GuestStatistics(values={7: 1})
    assert statistics.receive(pack_statistics([(4, 100), (5, 200)]), head=3, now=1000.9) == (
        None,
        0,
    )
    assert named_stats(statistics)["stat-free-memory"] == 100
    assert named_stats(statistics)["stat-disk-caches"] == STATISTIC_UNSET
    assert statistics.last_update == 1000
    assert statistics.release() == 3
    assert statistics.release() is None


def test_unknown_tags_are_counted_and_left_out() -> None:
    statistics = GuestStatistics()
    assert statistics.receive(pack_statistics([(4, 1), (99, 2)]), head=0, now=1.0) == (None, 1)
    assert statistics.values == {4: 1}


def test_a_second_buffer_gives_the_first_one_back() -> None:
    statistics = GuestStatistics()
    statistics.receive(b"", head=1, now=1.0)
    assert statistics.receive(b"", head=2, now=2.0) == (1, 0)
    assert statistics.held_head == 2


def test_after_a_pause_old_values_are_not_taken_for_new_ones() -> None:
    statistics = GuestStatistics()
    old = pack_statistics([(4, 100)])
    statistics.receive(old, head=1, now=10.0)
    assert statistics.suspend()
    statistics.receive(old, head=1, now=99.0)
    assert (statistics.last_update, statistics.held_head) == (10, 1)
    statistics.release()
    statistics.receive(pack_statistics([(4, 50)]), head=1, now=100.0)
    assert (statistics.last_update, statistics.values) == (100, {4: 50})


def test_suspending_without_a_buffer_expects_no_repeat() -> None:
    statistics = GuestStatistics()
    assert not statistics.suspend()
    statistics.receive(pack_statistics([(4, 1)]), head=0, now=5.0)
    assert statistics.values == {4: 1}


def test_reset_is_as_before_the_first_buffer() -> None:
    statistics = GuestStatistics()
    statistics.receive(pack_statistics([(4, 1)]), head=0, now=5.0)
    statistics.reset()
    assert statistics == GuestStatistics()

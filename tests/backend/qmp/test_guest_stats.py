from __future__ import annotations

from ballast.qmp.guest_stats import guest_stats_property
from support.balloon_control import FakeStats


def test_has_the_form_of_qemu() -> None:
    value = guest_stats_property(FakeStats({4: 1234, 15: 7, 99: 1}, last_update=1000))
    assert value["last-update"] == 1000
    # The names that `qom-get balloon0 guest-stats` of QEMU 11.1.3 has.
    unset = 18446744073709551615
    assert value["stats"] == {
        "stat-swap-in": unset,
        "stat-swap-out": unset,
        "stat-major-faults": unset,
        "stat-minor-faults": unset,
        "stat-free-memory": 1234,
        "stat-total-memory": unset,
        "stat-available-memory": unset,
        "stat-disk-caches": unset,
        "stat-htlb-pgalloc": unset,
        "stat-htlb-pgfail": unset,
        "stat-oom-kills": unset,
        "stat-alloc-stalls": unset,
        "stat-async-scans": unset,
        "stat-direct-scans": unset,
        "stat-async-reclaims": unset,
        "stat-direct-reclaims": 7,
    }

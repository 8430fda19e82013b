"""The guest's statistics in QEMU's form: the `guest-stats` property of its balloon."""

from __future__ import annotations

from ballast.qmp.control import GuestStats
from ballast_protocol.virtio.balloon import STATISTIC_UNSET, STATISTICS


def named_stats(stats: GuestStats) -> dict[str, int]:
    """Return every statistic by QEMU's name, 2^64-1 standing for what the guest did not send."""
    return {each.name: stats.values.get(each.tag, STATISTIC_UNSET) for each in STATISTICS}


def guest_stats_property(stats: GuestStats) -> dict[str, object]:
    """Return the value that `qom-get` gives for `guest-stats`."""
    return {"stats": named_stats(stats), "last-update": stats.last_update}

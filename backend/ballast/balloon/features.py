"""Which features a balloon of ours offers."""

from __future__ import annotations

from ballast_protocol.virtio.balloon import BalloonFeature
from ballast_protocol.virtio.features import VirtioFeature

TRANSPORT_FEATURES = VirtioFeature.VERSION_1 | VirtioFeature.INDIRECT_DESC | VirtioFeature.EVENT_IDX
"""What every ring of ours can do. ACCESS_PLATFORM is never offered: Linux's balloon refuses it."""

DEFAULT_FEATURES = (
    BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.PAGE_POISON
    | BalloonFeature.PAGE_REPORTING
)
"""QEMU's defaults, plus reporting, plus MUST_TELL_HOST.

Without PAGE_POISON a guest that poisons would lose reporting. Without MUST_TELL_HOST the driver may
use pages again before it says so (virtio 1.3, 5.5.6), and then parts of larger host pages cannot be
collected (`PageBook.collects`). Linux does nothing else whether it is offered or not.
"""

"""The reserved feature bits, against the numbers of the specification (virtio 1.3, section 6)."""

from __future__ import annotations

import pytest

from ballast_protocol.vhost_user.message import F_LOG_ALL, F_PROTOCOL_FEATURES
from ballast_protocol.virtio.balloon import BalloonFeature
from ballast_protocol.virtio.features import VirtioFeature

NUMBERS = {
    "NOTIFY_ON_EMPTY": 24,
    "ANY_LAYOUT": 27,
    "INDIRECT_DESC": 28,
    "EVENT_IDX": 29,
    "VERSION_1": 32,
    "ACCESS_PLATFORM": 33,
    "RING_PACKED": 34,
    "IN_ORDER": 35,
    "ORDER_PLATFORM": 36,
    "NOTIFICATION_DATA": 38,
    "RING_RESET": 40,
}


@pytest.mark.parametrize(("name", "bit"), NUMBERS.items())
def test_bit(name: str, bit: int) -> None:
    assert VirtioFeature[name] == 1 << bit


def test_no_bit_means_two_things() -> None:
    ours = [*VirtioFeature, *BalloonFeature, F_LOG_ALL, F_PROTOCOL_FEATURES]
    assert len({int(bit) for bit in ours}) == len(ours)
    assert len(VirtioFeature) == len(NUMBERS)

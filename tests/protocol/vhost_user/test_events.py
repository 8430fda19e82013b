"""What a SET_FEATURES means beyond its number."""

from __future__ import annotations

from ballast_protocol.vhost_user.events import SetFeatures
from ballast_protocol.vhost_user.message import F_LOG_ALL, F_PROTOCOL_FEATURES

GUEST = 1 << 32 | 0b100010


def test_vhost_users_own_bits_are_kept_apart() -> None:
    event = SetFeatures(GUEST | F_PROTOCOL_FEATURES | F_LOG_ALL)
    assert event.virtio_features == GUEST
    assert event.logs_writes
    assert not event.enables_all_rings


def test_a_front_end_without_protocol_features_enables_the_rings_at_once() -> None:
    event = SetFeatures(GUEST)
    assert event.enables_all_rings
    assert not event.logs_writes

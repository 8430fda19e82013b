"""VERSION: how a session begins, and what both sides may send from then on."""

from __future__ import annotations

from dataclasses import dataclass

from ballast_protocol.errors import MalformedError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.capabilities import (
    Capabilities,
    EffectiveCapabilities,
    effective,
    encode_capabilities,
    negotiate,
    parse_capabilities,
)
from ballast_protocol.vfio_user.message import VersionHead

MAJOR = 0
"""The only major version there is."""

MINOR = 1
"""The highest minor version served. Since 0.1 there is DEVICE_FEATURE instead of DIRTY_PAGES."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides have told each other.

    Attributes:
        client: What the client can take, defaults included.
        limits: What the client may send, defaults included.
        reply: The payload that tells the client.
    """

    client: EffectiveCapabilities
    limits: EffectiveCapabilities
    reply: bytes


def agree(payload: bytes, offered: Capabilities) -> tuple[events.Version, Agreement]:
    """Make of a VERSION's payload the event, and what holds from then on.

    Raises:
        PeerError: It is no VERSION that we can speak.
    """
    head = VersionHead.unpack(payload)
    if head.major != MAJOR:
        raise MalformedError(f"version {head.major}.{head.minor} is not {MAJOR}.x")
    proposed = parse_capabilities(payload[VersionHead.SIZE :])
    # QEMU has no room for a reply that is longer than what it sent.
    room = len(payload) - VersionHead.SIZE
    said = negotiate(proposed, offered, room)
    reply = VersionHead(MAJOR, min(head.minor, MINOR)).pack() + encode_capabilities(said, room)
    event = events.Version(head.major, head.minor, proposed)
    return event, Agreement(effective(proposed), effective(said), reply)

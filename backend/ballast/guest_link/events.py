"""What a link tells its owner."""

from __future__ import annotations

from enum import Enum


class LinkEvent(Enum):
    """What happened on the link; the details are in the link's attributes."""

    QEMU_CONNECTED = "qemu-connected"
    QEMU_GONE = "qemu-gone"
    AGENT_ARRIVED = "agent-arrived"
    """An agent introduced itself that was not known, or had been silent."""
    AGENT_MUTE = "agent-mute"
    REPORT = "report"
    BLOCKS = "blocks"
    """The book of blocks, or what is known of the agent that fills it, has changed."""

"""The kinds of message on the agent channel; what they carry is in `guest` and `guest_blocks`.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

from enum import IntEnum


class MessageKind(IntEnum):
    """What a frame carries. Those marked host are sent by the daemon, the others by the agent."""

    HELLO = 1
    WELCOME = 2
    """Host: answers `HELLO`."""
    HELLO_REQUEST = 3
    """Host: asks for a `HELLO`, at the start of every connection."""
    REPORT_REQUEST = 4
    """Host: asks for one `MEMORY_REPORT` now."""
    MEMORY_REPORT = 5
    SET_INTERVAL = 6
    """Host: changes how often reports come."""
    ERROR = 7
    """Either: a message was refused. Never itself answered."""
    BLOCKS_GOAL = 8
    """Host: answered by `BLOCKS_STATUS`. It and those below are in `guest_blocks`."""
    SWEEP = 9
    """Host: answered by `SWEEP_DONE`."""
    SET_SWEEPS = 10
    """Host."""
    COMPACT = 11
    """Host: answered by `COMPACT_DONE`."""
    COMPACT_DONE = 12
    BLOCKS_REPORT = 13
    BLOCKS_ACK = 14
    """Host: answers `BLOCKS_REPORT`, after the discard."""
    BLOCKS_RELEASED = 15
    HOLDING = 16
    HOLDING_ACK = 17
    """Host: answers `HOLDING`."""
    BLOCKS_STATUS = 18
    SWEEP_DONE = 19

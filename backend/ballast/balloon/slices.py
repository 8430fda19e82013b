"""How much of a queue is served in one go."""

from __future__ import annotations

from dataclasses import dataclass

SLICE_BUFFERS = 64
"""Buffers served before the caller gets the thread back."""

SLICE_BYTES = 8 << 20
"""Bytes given back or spoken of before the caller gets the thread back: less than a millisecond for
drivers whose pages are adjacent."""


@dataclass(frozen=True)
class Slice:
    """What one call of `BalloonDevice.process` did.

    Attributes:
        notify: The driver wants to be told of used buffers.
        more: Buffers are left; call again soon.
    """

    notify: bool
    more: bool

"""What a virtqueue is, apart from its memory: plain data that can be saved and handed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class QueueState:
    """Size, addresses and positions of one split virtqueue. Untrusted until the queue is attached.

    Attributes:
        size: Number of descriptors; a power of two.
        desc_address: Of the descriptor table.
        avail_address: Of the driver's ring.
        used_address: Of the device's ring.
        next_avail: Free-running 16-bit index of the next entry to take from the driver's ring.
        next_used: Free-running 16-bit index of the next entry to fill in the device's ring.
        event_idx: Whether EVENT_IDX was negotiated.
        indirect: Whether INDIRECT_DESC was negotiated.
    """

    size: int = 0
    desc_address: int = 0
    avail_address: int = 0
    used_address: int = 0
    next_avail: int = 0
    next_used: int = 0
    event_idx: bool = False
    indirect: bool = False

    @property
    def addresses(self) -> tuple[int, int, int]:
        """The three ring addresses, which together with the positions identify a driver's ring."""
        return self.desc_address, self.avail_address, self.used_address

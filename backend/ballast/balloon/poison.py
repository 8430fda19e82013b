"""What a guest fills its free pages with, if it does (virtio 1.3, section 5.5.6.6)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Poison:
    """The pattern in force, and the next one.

    Attributes:
        value: What pages are filled with that the guest gives up; 0 if with nothing in particular.
        written: What the driver has said that it will fill them with, once it starts; None if it
            has said nothing.
    """

    value: int = 0
    written: int | None = None

    def begin(self, *, is_accepted: bool) -> None:
        """A new driver starts.

        Args:
            is_accepted: It has accepted PAGE_POISON, so that what it wrote counts.
        """
        self.value = (self.written or 0) if is_accepted else 0
        self.written = None

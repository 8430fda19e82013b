"""Guest memory statistics: the values, and the one buffer that the device holds (virtio 5.5.6.3).

The driver puts a buffer with fresh values into the stats queue. The device keeps it, and returns it
when it wants newer values; the driver then fills another. Returning a buffer at once would make the
guest spin.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast.queue.split import SplitQueue
from ballast_protocol.virtio.balloon import (
    STATISTIC_BY_TAG,
    unpack_statistics,
)


@dataclass
class GuestStatistics:
    """The last values that the guest sent.

    Attributes:
        values: By tag, as sent; tags that the guest left out are absent.
        last_update: Host time of the last buffer, in whole seconds since 1970; 0 means never.
        held_head: The head of the buffer that the device holds, if it does.
        is_repeat_due: The next buffer is one that was read already, before a pause.
        updates: How many buffers with new values came; a repeat is not one.
    """

    values: dict[int, int] = field(default_factory=dict)
    last_update: int = 0
    held_head: int | None = None
    is_repeat_due: bool = False
    updates: int = field(default=0, compare=False)

    def receive(self, data: bytes, head: int, now: float) -> tuple[int | None, int]:
        """Take a new buffer.

        Args:
            data: The buffer's contents.
            head: Its head, which is held from now on.
            now: Host time in seconds since 1970.

        Returns:
            The head of the buffer held before (a correct driver has only one, so usually None), and
            the number of entries with an unknown tag.
        """
        previous, self.held_head = self.held_head, head
        if self.is_repeat_due:
            self.is_repeat_due = False
            return previous, 0
        pairs = list(unpack_statistics(data))
        self.values = {tag: value for tag, value in pairs if tag in STATISTIC_BY_TAG}
        self.last_update = int(now)
        self.updates += 1
        return previous, sum(tag not in STATISTIC_BY_TAG for tag, _ in pairs)

    def release(self) -> int | None:
        """Stop holding the buffer and return its head, so that the guest sends newer values."""
        head, self.held_head = self.held_head, None
        return head

    def give_back(self, queue: SplitQueue) -> bool | None:
        """Return the held buffer to the driver.

        Returns:
            Whether the driver wants a notification, or None if no buffer was held.
        """
        head = self.release()
        if head is None:
            return None
        queue.add_used(head)
        return queue.publish()

    def suspend(self) -> bool:
        """The queue stops: stop holding the buffer, unreturned; return whether there was one.

        After a pause the same buffer is taken again. Its values are old, so they are not believed
        a second time as new ones.
        """
        self.is_repeat_due = self.release() is not None
        return self.is_repeat_due

    def reset(self) -> None:
        """Forget everything: the machine was reset."""
        self.values, self.last_update, self.held_head = {}, 0, None
        self.is_repeat_due = False

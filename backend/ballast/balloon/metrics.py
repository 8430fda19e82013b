"""What the device counts. Every field only grows while the daemon runs."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class BalloonMetrics:
    """Counters of one device.

    Attributes:
        inflate_buffers: Buffers taken from the inflate queue.
        inflate_pages: 4 KiB pages that entered the ledger.
        deflate_buffers: Buffers taken from the deflate queue.
        deflate_pages: 4 KiB pages that left the ledger.
        report_buffers: Buffers taken from the reporting queue.
        reported_bytes: Free memory that the guest reported.
        hint_buffers: Buffers taken from the free-page-hint queue.
        hinted_bytes: Free memory that the guest hinted at.
        statistics_buffers: Buffers taken from the stats queue.
        discard_calls: System calls that gave memory back.
        discarded_bytes: What they gave back, whether or not the host held it.
        inhibited_bytes: What was not given back because that was inhibited.
        discard_failures: System calls that the kernel refused.
        pages_not_ram: Pages that the guest handed over but that are not its RAM.
        pages_inflated_twice: Pages handed over while they were in the ledger.
        pages_not_inflated: Pages taken back that were not in the ledger.
        reports_refused: Reported ranges that were not RAM, not whole host pages, or poisoned.
        malformed_chains: Buffers that broke the specification; returned unused.
        broken_queues: Rings that had to be stopped until the driver starts anew.
        unknown_statistics: Entries of stats buffers with a tag that we do not know.
        config_writes: Writes of the config space that came as messages.
        config_writes_ignored: Writes of the config space at a moment when they cannot be meant.
    """

    inflate_buffers: int = 0
    inflate_pages: int = 0
    deflate_buffers: int = 0
    deflate_pages: int = 0
    report_buffers: int = 0
    reported_bytes: int = 0
    hint_buffers: int = 0
    hinted_bytes: int = 0
    statistics_buffers: int = 0
    discard_calls: int = 0
    discarded_bytes: int = 0
    inhibited_bytes: int = 0
    discard_failures: int = 0
    pages_not_ram: int = 0
    pages_inflated_twice: int = 0
    pages_not_inflated: int = 0
    reports_refused: int = 0
    malformed_chains: int = 0
    broken_queues: int = 0
    unknown_statistics: int = 0
    config_writes: int = 0
    config_writes_ignored: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

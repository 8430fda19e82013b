"""Reads the messages about blocks that come from the other end, every field checked.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

from collections.abc import Callable

from ballast_protocol.guest_blocks import (
    ANY_NODE,
    BLOCK_BYTES,
    MAX_BLOCK_MEMORY_BYTES,
    MAX_NODE,
    MAX_NODES,
    MAX_RANGES,
    MAX_REPORT_BLOCKS,
    MAX_SWEEP_SECONDS,
    MIN_SWEEP_SECONDS,
    PAGE_BYTES,
    PAGES_PER_BLOCK,
    BlockCounters,
    BlockMessage,
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    BlocksStatus,
    Compact,
    CompactDone,
    Holding,
    HoldingAck,
    NodeBlocks,
    NodeGoal,
    PageRange,
    Purpose,
    Ranges,
    SetSweeps,
    Sweep,
    SweepDone,
)
from ballast_protocol.guest_fields import Fields

_SECONDS_MAX = 1e10


def _read_session(fields: Fields) -> int:
    """Return the number of a session."""
    return fields.integer("session")


def _read_ranges(fields: Fields, name: str, max_bytes: int = MAX_BLOCK_MEMORY_BYTES) -> Ranges:
    ranges = tuple(PageRange(*row) for row in fields.rows(name, 3, MAX_RANGES))
    end = total = 0
    for span in ranges:
        if span.first_pfn % PAGES_PER_BLOCK or span.pages % PAGES_PER_BLOCK or not span.pages:
            fields.refuse(name, "has a range that is not made of whole blocks")
        if span.first_pfn < end or span.node > MAX_NODE:
            fields.refuse(name, "has ranges out of order, or of a node that cannot be")
        end = span.first_pfn + span.pages
        total += span.size_bytes
    if end > MAX_BLOCK_MEMORY_BYTES // PAGE_BYTES or total > max_bytes:
        fields.refuse(name, "has more memory than it may")
    return ranges


def _read_node(fields: Fields) -> int:
    return fields.integer("node", MAX_NODE, low=ANY_NODE)


def _read_goal(fields: Fields) -> BlocksGoal:
    rows = fields.rows("goals", 2, MAX_NODES, low=ANY_NODE)
    goals = tuple(NodeGoal(*row) for row in rows)
    for goal in goals:
        if not (goal.node <= MAX_NODE and 0 <= goal.size_bytes <= MAX_BLOCK_MEMORY_BYTES):
            fields.refuse("goals", "has a node or an amount that cannot be")
    if len({goal.node for goal in goals}) < len(goals):
        fields.refuse("goals", "has one node twice")
    return BlocksGoal(goals)


def _read_set_sweeps(fields: Fields) -> SetSweeps:
    every = when = None
    if not fields.is_null("every_seconds"):
        every = fields.number("every_seconds", MAX_SWEEP_SECONDS, MIN_SWEEP_SECONDS)
    if not fields.is_null("when_free_bytes"):
        when = fields.integer("when_free_bytes", MAX_BLOCK_MEMORY_BYTES, low=BLOCK_BYTES)
    return SetSweeps(every, when)


def _read_compact_done(fields: Fields) -> CompactDone:
    counts = (_amount(fields, "blocks_before"), _amount(fields, "blocks_after"))
    return CompactDone(fields.number("seconds", _SECONDS_MAX), *counts)


def _read_report(fields: Fields) -> BlocksReport:
    ranges = _read_ranges(fields, "ranges", MAX_REPORT_BLOCKS * BLOCK_BYTES)
    purposes = {purpose.value: purpose for purpose in Purpose}
    purpose = purposes.get(fields.text("purpose"))
    if purpose is None or not ranges:
        fields.refuse("it", "has no purpose that is known, or no ranges")
    return BlocksReport(_read_session(fields), purpose, ranges)


def _read_ack(fields: Fields) -> BlocksAck:
    freed = None if fields.is_null("freed_bytes") else _amount(fields, "freed_bytes")
    refused = _read_ranges(fields, "refused", MAX_REPORT_BLOCKS * BLOCK_BYTES)
    return BlocksAck(_read_session(fields), refused, freed)


def _read_released(fields: Fields) -> BlocksReleased:
    return BlocksReleased(_read_session(fields), _read_ranges(fields, "ranges"))


def _read_holding(fields: Fields) -> Holding:
    ranges = _read_ranges(fields, "ranges")
    return Holding(_read_session(fields), ranges, fields.boolean("last"))


def _read_holding_ack(fields: Fields) -> HoldingAck:
    return HoldingAck(_read_session(fields), _read_ranges(fields, "known"))


def _amount(fields: Fields, name: str) -> int:
    return fields.integer(name, MAX_BLOCK_MEMORY_BYTES)


def _read_node_blocks(fields: Fields) -> NodeBlocks:
    names = ("total_bytes", "free_bytes", "free_blocks", "held_bytes", "under_way_bytes")
    return NodeBlocks(fields.integer("node", MAX_NODE), *(_amount(fields, n) for n in names))


def _read_counters(fields: Fields) -> BlockCounters:
    # Counters that a later agent adds are ignored, those that it dropped are zero.
    names = BlockCounters.__dataclass_fields__
    return BlockCounters(**{n: fields.integer(n) for n in names if not fields.is_null(n)})


def _optional_text(fields: Fields, name: str) -> str | None:
    return None if fields.is_null(name) else fields.text(name)


def _read_status(fields: Fields) -> BlocksStatus:
    nodes = tuple(_read_node_blocks(node) for node in fields.inners("nodes", MAX_NODES))
    if len({node.node for node in nodes}) < len(nodes):
        fields.refuse("nodes", "has one node twice")
    return BlocksStatus(
        nodes=nodes,
        goal_bytes=_amount(fields, "goal_bytes"),
        settled=fields.boolean("settled"),
        reserve_bytes=_amount(fields, "reserve_bytes"),
        available_bytes=_amount(fields, "available_bytes"),
        pressure=fields.boolean("pressure"),
        counters=_read_counters(fields.inner("counters")),
        refusing=_optional_text(fields, "refusing"),
        short_reason=_optional_text(fields, "short_reason"),
    )


def _read_sweep_done(fields: Fields) -> SweepDone:
    names = ("tried_blocks", "isolated_blocks", "reported_bytes", "freed_bytes")
    seconds = fields.number("seconds", _SECONDS_MAX)
    return SweepDone(seconds, fields.text("reason"), *(_amount(fields, name) for name in names))


BLOCK_READERS: dict[type, Callable[[Fields], BlockMessage]] = {
    BlocksGoal: _read_goal,
    Sweep: lambda fields: Sweep(_read_node(fields)),
    SetSweeps: _read_set_sweeps,
    Compact: lambda fields: Compact(_read_node(fields)),
    CompactDone: _read_compact_done,
    BlocksReport: _read_report,
    BlocksAck: _read_ack,
    BlocksReleased: _read_released,
    Holding: _read_holding,
    HoldingAck: _read_holding_ack,
    BlocksStatus: _read_status,
    SweepDone: _read_sweep_done,
}

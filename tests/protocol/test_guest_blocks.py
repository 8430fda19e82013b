from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import MalformedError
from ballast_protocol.guest import Message, decode, encode
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    MAX_RANGES,
    BlockCounters,
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
    SetSweeps,
    Sweep,
    SweepDone,
    merge_blocks,
    split_blocks,
)
from ballast_protocol.guest_framing import FrameDecoder

MIB = 1 << 20
RANGES = (PageRange(512, 1024, 0), PageRange(2048, 512, 1))
STATUS = BlocksStatus(
    nodes=(NodeBlocks(0, 900 * MIB, 500 * MIB, 200, 64 * MIB, 2 * MIB),),
    goal_bytes=512 * MIB,
    settled=True,
    reserve_bytes=96 * MIB,
    available_bytes=400 * MIB,
    pressure=False,
    counters=BlockCounters(tried_blocks=10, isolated_blocks=9),
    refusing=None,
    short_reason="no more free blocks",
)
MESSAGES: list[Message] = [
    BlocksGoal(()),
    BlocksGoal((NodeGoal(0, 512 * MIB), NodeGoal(ANY_NODE, 0))),
    Sweep(),
    Sweep(3),
    SetSweeps(),
    SetSweeps(60.0, 256 * MIB),
    Compact(1),
    CompactDone(0.5, 3, 90),
    BlocksReport(7, Purpose.SWEEP, RANGES),
    BlocksReport(7, Purpose.HOLD, (PageRange(0, 64 * 512, 0),)),
    BlocksAck(7),
    BlocksAck(7, RANGES[1:], 4 * MIB),
    BlocksReleased(7, RANGES),
    Holding(7, (), True),
    Holding(7, RANGES, False),
    HoldingAck(7, RANGES[:1]),
    STATUS,
    replace(STATUS, refusing="huge pages are in use", short_reason=None),
    SweepDone(0.25, "no more free blocks", 10, 9, 18 * MIB, 18 * MIB),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_channel(message: Message) -> None:
    (frame,) = FrameDecoder().feed(encode(message, 12))
    assert frame.request_id == 12
    assert decode(frame) == message


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (BlocksGoal(()), "goals", [[-2, 0]]),
        (BlocksGoal(()), "goals", [[0, -1]]),
        (BlocksGoal(()), "goals", [[0, 1], [0, 2]]),
        (BlocksGoal(()), "goals", [[1 << 16, 1]]),
        (BlocksGoal(()), "goals", [[0]]),
        (Sweep(), "node", -2),
        (SetSweeps(), "every_seconds", 0.5),
        (SetSweeps(), "when_free_bytes", 4096),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", []),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[1, 512, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[512, 511, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[512, 0, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[512, 1024, 0], [1024, 512, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[2048, 512, 0], [1024, 512, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[0, 65 * 512, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[512, 512, -1]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[512, 512]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "ranges", [[1 << 50, 512, 0]]),
        (BlocksReport(7, Purpose.HOLD, RANGES), "purpose", "keep"),
        (BlocksAck(7), "freed_bytes", -1),
        (BlocksAck(7), "session", None),
        (Holding(7, (), True), "last", 1),
        (Holding(7, (), True), "ranges", [[n * 1024, 512, 0] for n in range(MAX_RANGES + 1)]),
        (STATUS, "settled", "yes"),
        (STATUS, "nodes", [asdict(STATUS.nodes[0])] * 2),
        (STATUS, "refusing", "x" * 257),
        (STATUS, "counters", {"sweeps": -1}),
    ],
)
def test_untrusted_values_are_bounded(message: Message, field: str, value: object) -> None:
    (frame,) = FrameDecoder().feed(encode(message))
    fields = {**json.loads(frame.payload), field: value}
    with pytest.raises(MalformedError):
        decode(replace(frame, payload=json.dumps(fields).encode("ascii")))


def test_counters_of_other_versions_are_no_error() -> None:
    (frame,) = FrameDecoder().feed(encode(STATUS))
    fields = {**json.loads(frame.payload), "counters": {"sweeps": 3, "somersaults": 1}}
    status = decode(replace(frame, payload=json.dumps(fields).encode("ascii")))
    assert isinstance(status, BlocksStatus)
    assert status.counters == BlockCounters(sweeps=3)


@given(st.dictionaries(st.integers(0, 40).map(lambda n: n * 512), st.integers(0, 1)))
def test_merging_and_splitting_are_inverse(blocks: dict[int, int]) -> None:
    ranges = merge_blocks(blocks)
    assert split_blocks(ranges) == blocks
    message = BlocksReleased(1, ranges)
    (frame,) = FrameDecoder().feed(encode(message))
    assert decode(frame) == message
    ends = {(span.first_pfn + span.pages, span.node) for span in ranges}
    assert not ends & {(span.first_pfn, span.node) for span in ranges}, "runs are merged"

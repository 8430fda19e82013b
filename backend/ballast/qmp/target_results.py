"""What the commands and events about a guest's target carry, as types."""

from __future__ import annotations

from dataclasses import replace

from ballast.policy.resize import GuestState, Outcome
from ballast_protocol.qmp.types import (
    BOOLEAN,
    INTEGER,
    NULL,
    NUMBER,
    STRING,
    Choice,
    Either,
    Member,
    Record,
    optional,
)

_GUEST = Member(
    "guest",
    Choice(tuple(each.value for each in GuestState), "BallastGuestState"),
    "What the guest is doing: `slow` if it will not get there in time, `stalled` if it does not "
    "move at all.",
)
_ID = Member("id", INTEGER, "The resize's number.")
_INITIAL = Member("initial-bytes", optional(INTEGER), "What the guest had; null: no driver.")
_SECONDS = Member("seconds", NUMBER, "How long it has taken.")

RESIZE_RESULT = Record(
    (
        _ID,
        Member(
            "result",
            Choice(tuple(each.value for each in Outcome), "BallastResizeOutcome"),
            "Why it ended.",
        ),
        Member("explanation", STRING, "The same in words, for people."),
        _INITIAL,
        Member("final-bytes", optional(INTEGER), "What the guest has now; null: no driver."),
        Member("wanted-bytes", INTEGER, "What it should have got to."),
        Member("moved-bytes", INTEGER, "How much it gave up or took back on balance."),
        Member("target-bytes", optional(INTEGER), "The target that holds now; null: all of it."),
        _SECONDS,
        _GUEST,
        Member("rolled-back", BOOLEAN, "The target from before holds again."),
    ),
    "BallastResizeResult",
)

RESIZE_ANSWER = Record(
    (_ID, *(replace(each, is_optional=True) for each in RESIZE_RESULT.members[1:])),
    "BallastResizeAnswer",
)

RESIZE_PROGRESS = Record(
    (
        _ID,
        _GUEST,
        _INITIAL,
        Member("actual-bytes", optional(INTEGER), "What the guest has; null: no driver."),
        Member("asked-bytes", optional(INTEGER), "What it is asked for now; null: all of it."),
        Member("wanted-bytes", optional(INTEGER), "What it shall have; null: not known yet."),
        _SECONDS,
        Member("timeout-seconds", NUMBER, "How long it may take."),
    ),
    "BallastResizeProgress",
)

_SWITCH = Record(
    (
        Member("enabled", BOOLEAN, "Whether it is on."),
        Member("reason", STRING, "Why; empty if nobody said."),
    ),
    "BallastSwitch",
)

RESIZING = Record(
    (
        _GUEST,
        Member("asked-bytes", optional(INTEGER), "What the guest is asked for; null: all of it."),
        Member("rate-bytes", INTEGER, "Bytes that it gives up each second at most; 0: no limit."),
        Member("hold", _SWITCH, "Whether the target is held."),
        Member("inhibit", _SWITCH, "Whether nothing is given back to the host."),
        Member("current", Either((RESIZE_PROGRESS, NULL)), "The resize in progress, if any."),
        Member("last", Either((RESIZE_RESULT, NULL)), "The result of the last one."),
    ),
    "BallastResizing",
)

"""The table itself: complete, and consistent with what may be offered."""

from __future__ import annotations

import pytest

from ballast_protocol.vhost_user.message import MAX_FDS, MAX_PAYLOAD_SIZE, ProtocolFeature, Request
from ballast_protocol.vhost_user.rules import (
    RULES,
    SERVED_PROTOCOL_FEATURES,
    UNKNOWN,
    Reply,
    name_of,
)


def test_every_request_has_a_rule() -> None:
    assert RULES.keys() == set(Request)


@pytest.mark.parametrize("request_", Request, ids=lambda item: item.name)
def test_rule_is_within_bounds(request_: Request) -> None:
    rule = RULES[request_]
    assert 0 <= rule.sizes[0] <= rule.sizes[1] <= MAX_PAYLOAD_SIZE
    assert 0 <= rule.fds[0] <= rule.fds[1] <= MAX_FDS


@pytest.mark.parametrize("request_", Request, ids=lambda item: item.name)
def test_what_may_be_offered_is_served_and_the_other_way_round(request_: Request) -> None:
    rule = RULES[request_]
    if rule.needs:
        assert (rule.decode is not None) == bool(rule.needs & SERVED_PROTOCOL_FEATURES)
    if rule.decode is not None:
        assert rule.reply is not Reply.OTHER


def test_features_that_qemu_accepts_but_does_not_implement_are_never_served() -> None:
    never = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.XEN_MMAP
    assert not never & SERVED_PROTOCOL_FEATURES


def test_unknown_requests_are_read_and_refused() -> None:
    assert UNKNOWN.decode is None
    assert UNKNOWN.reply is Reply.ON_DEMAND


def test_names() -> None:
    assert name_of(24) == "GET_CONFIG"
    assert name_of(99) == "request 99"

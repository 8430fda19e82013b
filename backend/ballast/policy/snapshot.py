"""A governor as plain values and back, so that it outlives the process that runs it.

Times are those of the monotonic clock, which all processes of a host share. Values that make no
sense (another version's, another boot's) leave the governor as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from ballast.policy.governor import KEPT_RESULTS, Governor, Resize
from ballast.policy.resize import GuestState, OnFailure, Outcome, ResizeRequest
from ballast.policy.result import ResizeResult
from ballast_protocol.errors import OperatorError

VERSION = 1


def snapshot(governor: Governor) -> dict[str, object]:
    """Return what must survive, as values that JSON can hold."""
    resize = governor.resize
    return {
        "version": VERSION,
        "target-bytes": governor.target_bytes,
        "asked-bytes": governor.asked_bytes,
        "rate-bytes": governor.pace.rate_bytes,
        "hold-reason": governor.hold_reason,
        "inhibit-reason": governor.inhibit_reason,
        "next-id": governor.next_id,
        "resize": None if resize is None else _resize_values(resize),
        "results": [_result_values(each) for each in governor.results],
    }


def _resize_values(resize: Resize) -> dict[str, object]:
    request = resize.request
    return {
        "id": resize.id,
        "target-bytes": request.target_bytes,
        "timeout-seconds": request.timeout_seconds,
        "stall-seconds": request.stall_seconds,
        "rate-bytes": request.rate_bytes,
        "on-failure": request.on_failure.value,
        "started-at": resize.started_at,
        "initial-bytes": resize.initial_bytes,
        "previous-bytes": resize.previous_bytes,
        "previous-rate-bytes": resize.previous_rate_bytes,
        "moving-seconds": resize.moving_seconds,
    }


def _result_values(result: ResizeResult) -> dict[str, object]:
    return {
        "id": result.id,
        "outcome": result.outcome.value,
        "guest": result.guest.value,
        "initial-bytes": result.initial_bytes,
        "final-bytes": result.final_bytes,
        "wanted-bytes": result.wanted_bytes,
        "in-force-bytes": result.in_force_bytes,
        "seconds": result.seconds,
        "tries": result.tries,
        "then": result.then.value,
    }


def restore(governor: Governor, values: Mapping[str, object], now: float) -> None:
    """Go on where another process stopped; a resize in progress goes on too.

    Raises:
        OperatorError: These are not values of ours; nothing was changed.
    """
    if values.get("version") != VERSION:
        raise OperatorError(f"the saved target is of version {values.get('version')!r}, not ours")
    try:
        target, asked = _size(values, "target-bytes"), _size(values, "asked-bytes")
        rate, next_id = _number(values, "rate-bytes"), _number(values, "next-id")
        hold, inhibit = _text(values, "hold-reason"), _text(values, "inhibit-reason")
        resize = _resize(values["resize"], now)
        results = _results(values.get("results", []))
    except (KeyError, TypeError, ValueError) as error:
        raise OperatorError(f"the saved target cannot be read: {error!r}") from error
    governor.target_bytes, governor.asked_bytes = target, asked
    governor.pace.rate_bytes, governor.next_id = rate, max(next_id, governor.next_id)
    governor.pace.restart(now)
    governor.movement.restart(None, None, now)
    governor.hold_reason, governor.inhibit_reason = hold, inhibit
    governor.resize, governor.results = resize, results


def _resize(values: object, now: float) -> Resize | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise TypeError("resize")
    rate = values["rate-bytes"]
    request = ResizeRequest(
        target_bytes=_number(values, "target-bytes"),
        timeout_seconds=float(values["timeout-seconds"]),
        stall_seconds=float(values["stall-seconds"]),
        rate_bytes=None if rate is None else _number(values, "rate-bytes"),
        on_failure=OnFailure(values["on-failure"]),
    )
    try:
        request.check()
    except OperatorError as error:
        raise ValueError(str(error)) from error
    return Resize(
        id=_number(values, "id"),
        request=request,
        started_at=min(float(values["started-at"]), now),
        initial_bytes=_size(values, "initial-bytes"),
        previous_bytes=_size(values, "previous-bytes"),
        previous_rate_bytes=_number(values, "previous-rate-bytes"),
        moving_seconds=float(values["moving-seconds"]),
        looked_at=now,
    )


def _results(values: object) -> list[ResizeResult]:
    if not isinstance(values, list) or len(values) > KEPT_RESULTS:
        raise TypeError("results")
    return [_result(each) for each in values]


def _result(values: object) -> ResizeResult:
    if not isinstance(values, Mapping) or values["tries"] not in (None, True, False):
        raise TypeError("results")
    return ResizeResult(
        id=_number(values, "id"),
        outcome=Outcome(values["outcome"]),
        guest=GuestState(values["guest"]),
        initial_bytes=_size(values, "initial-bytes"),
        final_bytes=_size(values, "final-bytes"),
        wanted_bytes=_number(values, "wanted-bytes"),
        in_force_bytes=_size(values, "in-force-bytes"),
        seconds=float(values["seconds"]),
        tries=values["tries"],
        then=OnFailure(values["then"]),
    )


def _number(values: Mapping[str, object], key: str) -> int:
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(key)
    return value


def _size(values: Mapping[str, object], key: str) -> int | None:
    return None if values[key] is None else _number(values, key)


def _text(values: Mapping[str, object], key: str) -> str | None:
    value = values[key]
    if value is not None and not isinstance(value, str):
        raise TypeError(key)
    return value

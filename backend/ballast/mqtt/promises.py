"""What a successor of this process has to know to keep its promises: who is owed a result.

Bounded: beyond that the oldest is forgotten, and what has very long names is not kept at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ballast.mqtt.command import Request
from ballast.mqtt.outbox import Outgoing

MAX_KEPT = 32
"""How many requests, and how many results, are kept for each VM."""

MAX_NAMES_BYTES = 1024
"""How long topic, response topic and correlation data of what is kept may be together."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """A request whose resize is in progress.

    Attributes:
        resize: The resize's number.
        topic: Where it was sent to.
        response_topic: Where its sender expects the result; None if nowhere.
        correlation: What its sender wants to see in the result, as hexadecimal digits.
    """

    resize: int
    topic: str
    response_topic: str | None = None
    correlation: str | None = None

    def request(self) -> Request:
        """Return the request, without what it asked for."""
        return Request(
            self.topic,
            b"",
            response_topic=self.response_topic,
            correlation=_from_hex(self.correlation),
        )


@dataclass(frozen=True, slots=True)
class Owed:
    """A result that the broker has not acknowledged.

    Attributes:
        topic: Where it goes.
        payload: What it says.
        correlation: What its receiver wants to see in it, as hexadecimal digits.
    """

    topic: str
    payload: str
    correlation: str | None = None

    @property
    def correlation_data(self) -> bytes | None:
        """The correlation data as they are."""
        return _from_hex(self.correlation)


@dataclass(frozen=True, slots=True)
class Promises:
    """What is owed to those who sent targets for one VM.

    Attributes:
        awaited: Requests whose resize is in progress.
        owed: Results that wait for the broker.
    """

    awaited: tuple[Awaited, ...] = ()
    owed: tuple[Owed, ...] = ()


def promises(awaited: Iterable[tuple[int, Request]], results: Iterable[Outgoing]) -> Promises:
    """Return what there is to keep.

    Args:
        awaited: Numbers of resizes in progress, and the requests that they are for.
        results: Results that wait for the broker.
    """
    requests = [
        Awaited(number, each.topic, each.response_topic, _to_hex(each.correlation))
        for number, each in awaited
        if _fits(each.topic, each.response_topic or "", each.correlation)
    ]
    owed = [
        Owed(each.topic, each.payload.decode(), _to_hex(each.correlation))
        for each in results
        if _fits(each.topic, "", each.correlation)
    ]
    return Promises(tuple(requests[-MAX_KEPT:]), tuple(owed[-MAX_KEPT:]))


def _fits(topic: str, response_topic: str, correlation: bytes | None) -> bool:
    size = len(topic.encode()) + len(response_topic.encode()) + len(correlation or b"")
    return size <= MAX_NAMES_BYTES


def _to_hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)

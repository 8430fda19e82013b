"""What is to be published: bounded however long the broker is away, in order, nothing lost twice.

Three kinds of message are kept in three ways:

- *retained* ones say how things are. Only the newest of a topic counts, and all are sent again to
  each broker that we reach, because one that lost its memory has none of them;
- *assured* ones (results and events) are promised: they wait until a broker has acknowledged them.
  If too many wait, the oldest event goes, or if there is none the oldest result, and is counted;
- *fleeting* ones (statistics) are worth nothing later: only the newest of a topic is kept, and none
  while there is no connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final


class Kind(Enum):
    """How a message is kept; see above."""

    RETAINED = "retained"
    RESULT = "result"
    EVENT = "event"
    FLEETING = "fleeting"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish.

    Attributes:
        topic: Where to.
        payload: What; an empty retained one takes back what the broker has.
        kind: How it is kept.
        correlation: What the sender of a command wants to see in its result.
        owner: The VM that it is about, if it is a result.
        serial: Its place in the order; given by the outbox.
    """

    topic: str
    payload: bytes
    kind: Kind
    correlation: bytes | None = None
    owner: str = ""
    serial: int = 0

    @property
    def qos(self) -> int:
        """The quality of service: once at least, except for what is fleeting."""
        return 0 if self.kind is Kind.FLEETING else 1

    @property
    def is_retained(self) -> bool:
        """Whether the broker keeps it for those who come later."""
        return self.kind is Kind.RETAINED


_ASSURED: Final = (Kind.EVENT, Kind.RESULT)
"""What is promised, in the order in which it gives way."""


@dataclass(slots=True)
class Counters:
    """What went out, and what did not.

    Attributes:
        sent: Messages that the broker has taken.
        dropped_events: Events that had to give way to newer ones.
        dropped_results: Results that had to give way to newer ones.
    """

    sent: int = 0
    dropped_events: int = 0
    dropped_results: int = 0


@dataclass(slots=True)
class Outbox:
    """The messages that wait.

    Attributes:
        limit: How many results and events may wait.
        counters: What has happened so far.
        wake: Called when there is something to send.
        results_changed: Called with a VM's name when it has other results waiting than before.
        is_connected: Whether fleeting messages are worth keeping.
    """

    limit: int
    wake: Callable[[], None] = lambda: None
    results_changed: Callable[[str], None] = lambda owner: None
    counters: Counters = field(default_factory=Counters)
    is_connected: bool = False
    _retained: dict[str, bytes] = field(default_factory=dict)
    _waiting: dict[int, Outgoing] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)
    _assured: dict[Kind, dict[int, Outgoing]] = field(
        default_factory=lambda: {kind: {} for kind in _ASSURED}
    )
    _in_flight: dict[int, Outgoing] = field(default_factory=dict)
    _serial: int = 0

    def __len__(self) -> int:
        """Return how many messages wait or are on their way."""
        return len(self._waiting) + len(self._in_flight)

    # In ---------------------------------------------------------------------------------------

    def retain(self, topic: str, payload: bytes) -> bool:
        """Have a topic say something from now on; return whether that is new."""
        if self._retained.get(topic) == payload:
            return False
        self._retained[topic] = payload
        self._put(Outgoing(topic, payload, Kind.RETAINED))
        return True

    def forget(self, topic: str) -> None:
        """Have the broker forget what a topic says."""
        self._retained.pop(topic, None)
        self._put(Outgoing(topic, b"", Kind.RETAINED))

    def result(
        self, topic: str, payload: bytes, correlation: bytes | None, owner: str = ""
    ) -> None:
        """Promise a result to whoever sent a command for the VM `owner`."""
        self._put(Outgoing(topic, payload, Kind.RESULT, correlation, owner))
        self._keep_limit()
        self.results_changed(owner)

    def results(self, owner: str) -> list[Outgoing]:
        """Return a VM's results that no broker has acknowledged, the oldest first."""
        kept = {**self._in_flight, **self._assured[Kind.RESULT]}
        found = [each for each in kept.values() if each.kind is Kind.RESULT]
        return sorted((each for each in found if each.owner == owner), key=lambda each: each.serial)

    def event(self, topic: str, payload: bytes) -> None:
        """Promise an event to whoever listens."""
        self._put(Outgoing(topic, payload, Kind.EVENT))
        self._keep_limit()

    def fleeting(self, topic: str, payload: bytes) -> None:
        """Send something if it can be sent now."""
        if self.is_connected:
            self._put(Outgoing(topic, payload, Kind.FLEETING))

    # Out --------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Start anew with a broker: everything retained has to be said again."""
        self.is_connected = True
        for topic, payload in self._retained.items():
            if topic not in self._newest:
                self._put(Outgoing(topic, payload, Kind.RETAINED))

    def disconnected(self) -> None:
        """Take back what was on its way, and let go of what is fleeting."""
        self.is_connected = False
        self._put_back(list(self._in_flight.values()))
        self._in_flight.clear()
        for item in [each for each in self._waiting.values() if each.kind is Kind.FLEETING]:
            self._remove(item)
        self._keep_limit()

    def take(self) -> Outgoing | None:
        """Return the next message to send, which is then on its way; None if there is none."""
        for item in self._waiting.values():
            self._remove(item)
            self._in_flight[item.serial] = item
            return item
        return None

    def done(self, item: Outgoing) -> None:
        """Note that the broker has a message."""
        if self._in_flight.pop(item.serial, None) is not None:
            self.counters.sent += 1
            if item.kind is Kind.RESULT:
                self.results_changed(item.owner)

    def _put(self, item: Outgoing) -> None:
        self._serial += 1
        if item.kind not in _ASSURED and item.topic in self._newest:
            self._remove(self._waiting[self._newest[item.topic]])
        self._insert(replace(item, serial=self._serial))

    def _put_back(self, items: Iterable[Outgoing]) -> None:
        """Put messages back at their place, unless something newer has been said since."""
        for item in sorted(items, key=lambda each: -each.serial):
            if item.kind in _ASSURED or item.topic not in self._newest:
                self._insert(item)
        self._waiting = dict(sorted(self._waiting.items()))
        self._assured = {kind: dict(sorted(each.items())) for kind, each in self._assured.items()}

    def _insert(self, item: Outgoing) -> None:
        self.wake()
        self._waiting[item.serial] = item
        if item.kind in _ASSURED:
            self._assured[item.kind][item.serial] = item
        else:
            self._newest[item.topic] = item.serial

    def _remove(self, item: Outgoing) -> None:
        del self._waiting[item.serial]
        if item.kind in _ASSURED:
            del self._assured[item.kind][item.serial]
        else:
            del self._newest[item.topic]

    def _keep_limit(self) -> None:
        while sum(map(len, self._assured.values())) > self.limit:
            kind = next(kind for kind in _ASSURED if self._assured[kind])
            self._remove(next(iter(self._assured[kind].values())))
            if kind is Kind.EVENT:
                self.counters.dropped_events += 1
            else:
                self.counters.dropped_results += 1

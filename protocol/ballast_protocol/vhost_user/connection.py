"""The back-end's end of one vhost-user connection: a state machine without I/O.

The shell around it reads *exactly* `bytes_wanted` bytes at a time, header and payload apart: file
descriptors arrive with the first byte of their message, and a longer read could mix up those of two
messages. It hands the bytes and the number of descriptors to `receive`, does what the event says,
and sends what `auto_reply`, `ack` or a `reply_` method returned. Every event is finished by exactly
one of those calls, whether or not anything has to be sent: QEMU waits for a reply without any time
limit and with the whole virtual machine stopped, so none may be forgotten.

What ends the connection, and what is merely refused. QEMU does not survive a closed connection for
long, so only this is fatal: a broken frame; descriptors that do not belong to the message; a
payload that contradicts itself; a ring that does not exist; and features that were never offered,
because the two sides would then read guest memory differently. A whole message that we do not serve
(an unknown code, or one whose protocol feature was not negotiated) becomes `Unsupported` and gets a
refusal if it wants an answer, and the connection goes on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ballast_protocol.errors import InternalError, MalformedError, PeerError, TruncatedError
from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.events import Event
from ballast_protocol.vhost_user.headers import (
    check_header,
    config_head,
    read_header,
    reply_header,
    status_payload,
)
from ballast_protocol.vhost_user.message import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    MAX_CONFIG_SIZE,
    ConfigAccess,
    Header,
    ProtocolFeature,
    Request,
    U64Payload,
    VringState,
)
from ballast_protocol.vhost_user.rules import (
    RULES,
    SERVED_PROTOCOL_FEATURES,
    UNKNOWN,
    Reply,
    Rule,
    name_of,
)

_CONFIG_HEAD_BYTES = Header.SIZE + ConfigAccess.SIZE
_MAX_KNOWN = 16


class _Pending(NamedTuple):
    """A request that waits to be finished, and perhaps the answer that says that all went well."""

    header: Header
    rule: Rule
    event: Event
    prepared: bytes | None = None


class BackendConnection:
    """What both sides have agreed on, and which request is being served.

    The same connection may see several sessions one after the other: QEMU repeats the whole
    handshake when the device is unplugged and plugged in again.

    Attributes:
        features_acked: What SET_FEATURES said last, 0 before it.
        protocol_features_acked: What SET_PROTOCOL_FEATURES said last.
        broken: Whether the front-end broke the protocol; the connection is then of no more use.
    """

    def __init__(
        self,
        *,
        features: int,
        protocol_features: ProtocolFeature,
        queue_count: int,
        max_mem_slots: int,
        config_size: int,
    ) -> None:
        """Start before the first message.

        Args:
            features: The virtio features offered. vhost-user's bit 30 is added to them.
            protocol_features: The protocol features offered.
            queue_count: How many queues the device has.
            max_mem_slots: How many memory regions the back-end can hold.
            config_size: Bytes of the device's config space.

        Raises:
            InternalError: A protocol feature that is not served, or too large a config space.
        """
        unserved = int(protocol_features) & ~int(SERVED_PROTOCOL_FEATURES)
        if unserved:
            raise InternalError(f"cannot serve {ProtocolFeature(unserved)!r}")
        if config_size > MAX_CONFIG_SIZE:
            raise InternalError(f"a config space of {config_size} bytes does not fit a message")
        self._features = features | F_PROTOCOL_FEATURES
        self._protocol_features = protocol_features
        self._queue_count = queue_count
        self._max_mem_slots = max_mem_slots
        self._config_size = config_size
        self.features_acked = 0
        self.protocol_features_acked = ProtocolFeature(0)
        self.broken = False
        self._header: Header | None = None
        self._fd_count = 0
        self._pending: _Pending | None = None
        self._known: dict[bytes, _Pending] = {}

    # Receiving

    @property
    def bytes_wanted(self) -> int:
        """How many bytes to read next: a header, or the payload of the one that has come."""
        return Header.SIZE if self._header is None else self._header.size

    @property
    def mid_message(self) -> bool:
        """Whether a payload is still to come, so that an end of file now is a truncation."""
        return self._header is not None

    @property
    def pending(self) -> int | None:
        """The code of the request that waits to be finished; None if it is the peer's turn."""
        return None if self._pending is None else self._pending.header.request

    def receive(self, data: bytes, fd_count: int = 0) -> Event | None:
        """Take in the next `bytes_wanted` bytes and the number of descriptors that came with them.

        Returns the event, or None after a header whose payload is still to come.

        Raises:
            PeerError: The front-end broke the protocol; close the connection and all descriptors.
            InternalError: The last event was not finished, or the connection had already ended.
        """
        if self.broken or self._pending is not None or len(data) > self.bytes_wanted:
            raise InternalError(
                f"receive out of turn: broken={self.broken}, pending={self.pending}, "
                f"{len(data)} bytes where {self.bytes_wanted} were wanted"
            )
        try:
            if len(data) < self.bytes_wanted:
                raise TruncatedError(f"{len(data)} bytes of {self.bytes_wanted}, then the end")
            return self._receive(data, fd_count)
        except PeerError as error:
            self.broken = True
            if self._header is None:
                raise
            raise type(error)(f"{name_of(self._header.request)}: {error}") from error

    def recall(self, message: bytes) -> Event | None:
        """Take in a whole message without descriptors, if it begins like one that was in order.

        Only accesses to the config space are recalled: a guest's CPU waits for each. Returns None,
        and has taken in nothing, if the message has to be looked at in the ordinary way.
        """
        known = self._known.get(message[:_CONFIG_HEAD_BYTES])
        if known is None or self._header is not None or self._pending is not None or self.broken:
            return None
        if len(message) != Header.SIZE + known.header.size:
            return None
        event = known.event
        if isinstance(event, events.SetConfig):
            event = events.SetConfig(event.offset, event.flags, message[_CONFIG_HEAD_BYTES:])
        self._pending = known._replace(event=event) if event is not known.event else known
        return event

    def _remember(self, header: Header, rule: Rule, payload: bytes, event: Event) -> None:
        """Have messages recalled that begin like this one; what follows the head is only data."""
        if len(self._known) < _MAX_KNOWN:
            pending = _Pending(header, rule, event, self._status_of(header, rule, ok=True))
            self._known[header.pack() + payload[: ConfigAccess.SIZE]] = pending

    def _receive(self, data: bytes, fd_count: int) -> Event | None:
        if self._header is not None:
            if fd_count:
                raise MalformedError("file descriptors came in the middle of the message")
            return self._finish(self._header, data)
        # Kept even if it is refused, so that the error can name the request.
        self._header, self._fd_count = read_header(data), fd_count
        check_header(data, fd_count)
        return None if self._header.size else self._finish(self._header, b"")

    def _finish(self, header: Header, payload: bytes) -> Event:
        rule = RULES.get(header.request, UNKNOWN)
        event = self._decode(header, rule, payload)
        if isinstance(event, events.GetConfig | events.SetConfig):
            self._remember(header, rule, payload, event)
        elif isinstance(event, events.SetProtocolFeatures):
            self._known.clear()
        if header.request == Request.SET_LOG_BASE and self._agreed(ProtocolFeature.LOG_SHMFD):
            rule = replace(rule, reply=Reply.STATUS)
        self._pending = _Pending(header, rule, event)
        self._header = None
        return event

    def _decode(self, header: Header, rule: Rule, payload: bytes) -> Event:
        if rule.decode is None:
            return events.Unsupported(header.request, f"{name_of(header.request)} is not served")
        if not self._agreed(rule.needs):
            return events.Unsupported(
                header.request,
                f"{name_of(header.request)} without having negotiated {rule.needs.name}",
            )
        event = rule.decode(payload, self._fd_count)
        self._check_event(event)
        return event

    def _agreed(self, feature: ProtocolFeature) -> bool:
        # As plain numbers: `in` makes new flags of both.
        return not int(feature) & ~int(self.protocol_features_acked)

    def _check_event(self, event: Event) -> None:
        match event:
            case events.GetConfig() | events.SetConfig():
                pass
            case events.SetFeatures(features):
                self._check_offer(features, self._features | F_LOG_ALL, "features")
                self.features_acked = features
            case events.SetProtocolFeatures(wanted):
                self._check_offer(wanted, self._protocol_features, "protocol features")
                self.protocol_features_acked = wanted
            case events.SetLogBase(has_fd=has_fd):
                if has_fd != self._agreed(ProtocolFeature.LOG_SHMFD):
                    raise MalformedError("a descriptor belongs to it if, and only if, LOG_SHMFD")
            case (
                events.SetVringNum(index)
                | events.SetVringAddr(index)
                | events.SetVringBase(index)
                | events.GetVringBase(index)
                | events.SetVringKick(index)
                | events.SetVringCall(index)
                | events.SetVringErr(index)
                | events.SetVringEnable(index)
            ):
                if index >= self._queue_count:
                    raise MalformedError(f"ring {index}, but there are only {self._queue_count}")
            case _:
                pass

    @staticmethod
    def _check_offer(wanted: int, offered: int, what: str) -> None:
        extra = int(wanted) & ~int(offered)
        if extra:
            raise MalformedError(f"accepts {what} never offered: {extra:#x}")

    # Answering

    @property
    def reply_demanded(self) -> bool:
        """Whether the front-end waits for an answer to the pending request."""
        return self._pending is not None and self._demands(self._pending.header, self._pending.rule)

    def _demands(self, header: Header, rule: Rule) -> bool:
        return rule.reply is not Reply.ON_DEMAND or (
            header.need_reply and self._agreed(ProtocolFeature.REPLY_ACK)
        )

    def auto_reply(self, event: Event) -> bytes | None:
        """Finish an event that concerns the protocol alone, or return None if it is another's.

        Like every answer the result may be empty: then there is nothing to send.

        Raises:
            InternalError: `event` is not the one that is pending.
        """
        if self._pending is None or (
            self._pending.event is not event and self._pending.event != event
        ):
            raise InternalError(f"{event!r} is not pending")
        match event:
            case events.GetConfig() | events.SetConfig():
                return None
            case events.GetFeatures():
                return self.reply_u64(self._features)
            case events.GetProtocolFeatures():
                return self.reply_u64(self._protocol_features)
            case events.GetQueueNum():
                return self.reply_u64(self._queue_count)
            case events.GetMaxMemSlots():
                return self.reply_u64(self._max_mem_slots)
            case events.SetProtocolFeatures():
                return self.ack()
            case events.Unsupported():
                return self.ack(ok=False)
            case _:
                return None

    def ack(self, ok: bool = True) -> bytes:
        """Finish the pending request with a status; return b"" if the front-end wants none.

        Not ok is a fitting refusal for any request: for those that want more than a status it is an
        empty payload, which QEMU reports as an error of that one request.

        Raises:
            InternalError: Nothing is pending, or what is pending wants more than "ok".
        """
        if self._pending is None:
            raise InternalError("an acknowledgement, but no request is pending")
        header, rule, _, prepared = self._pending
        if not ok or prepared is None:
            prepared = self._status_of(header, rule, ok)
        if prepared is None:
            raise InternalError(f"{name_of(header.request)} wants {rule.reply.value}")
        self._pending = None
        return prepared

    def _status_of(self, header: Header, rule: Rule, ok: bool) -> bytes | None:
        """Return the answer that tells how it went; None if success needs another one."""
        if not self._demands(header, rule):
            return b""
        if rule.reply in (Reply.ON_DEMAND, Reply.STATUS):
            payload = status_payload(rule.accepted if ok else rule.refused)
            return reply_header(header.request, len(payload)) + payload
        return None if ok else reply_header(header.request, 0)

    def reply_u64(self, value: int) -> bytes:
        """Finish the pending request with a number.

        Raises:
            InternalError: The pending request wants something else.
        """
        self._expect(Reply.U64)
        return self._reply(U64Payload(value).pack())

    def reply_vring_state(self, index: int, base: int) -> bytes:
        """Finish GET_VRING_BASE with where the ring stopped.

        Raises:
            InternalError: Something else is pending, or another ring.
        """
        event = self._expect(Reply.VRING_STATE)
        if event != events.GetVringBase(index):
            raise InternalError(f"ring {index} answers {event!r}")
        return self._reply(VringState(index, base).pack())

    def reply_config(self, config: bytes) -> bytes:
        """Finish GET_CONFIG.

        QEMU wants exactly as many bytes as it asked for, and its `config_size` is an option that
        an operator can get wrong: what lies beyond the device's config space is sent as zeros.

        Args:
            config: The whole config space; the part that was asked for is cut out.

        Raises:
            InternalError: Something else is pending, or `config` has not the announced size.
        """
        event = self._expect(Reply.CONFIG)
        if not isinstance(event, events.GetConfig) or len(config) != self._config_size:
            raise InternalError(f"{len(config)} bytes of config space answer {event!r}")
        part = config[event.offset : event.offset + event.size].ljust(event.size, b"\0")
        return self._reply(config_head(event.offset, event.size, event.flags) + part)

    def _expect(self, reply: Reply) -> Event:
        if self._pending is None or self._pending.rule.reply is not reply:
            waits = "nothing" if self._pending is None else name_of(self._pending.header.request)
            raise InternalError(f"{reply.value} to answer {waits}")
        return self._pending.event

    def _reply(self, payload: bytes) -> bytes:
        if self._pending is None:
            raise InternalError("a reply, but no request is pending")
        message = reply_header(self._pending.header.request, len(payload)) + payload
        self._pending = None
        return message

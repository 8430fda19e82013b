"""The server's end of one vfio-user connection: a state machine without I/O.

The shell around it reads *exactly* `bytes_wanted` bytes at a time, header and payload apart: file
descriptors arrive with the first byte of their message, clients send messages without waiting for
replies, and a longer read would mix up the descriptors of several. It hands the bytes and the
number of descriptors to `receive`, which gives a `Request`, or a `Completion` of a command of our
own, or None while a message is incomplete.

Every request is finished by exactly one of `auto_reply` (where it returns bytes), `ack`,
`reply_data`, `describe` and `refuse`, whether or not the client waits, and what they return is sent
in one piece. Requests may be finished in any order, but they take effect in the order in which
they came. A client's virtual CPU waits for the reply: never let it wait for a command of our own,
which may have to wait for that same CPU.

What ends the connection, and what is merely refused. QEMU neither reconnects nor survives the loss
of its server for long, so only this is fatal: a broken frame, or one beyond the bounds that were
agreed on; descriptors in the middle of a message; a session that does not begin with a VERSION that
we can speak; and replies to what was not asked. A whole message that is wrong or not served becomes
`Refused` and is answered with an errno, and the connection goes on.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ballast_protocol.errors import InternalError, MalformedError, PeerError, TruncatedError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.bounds import check_event, check_frame
from ballast_protocol.vfio_user.capabilities import (
    DEFAULT_CAPABILITIES,
    Capabilities,
    EffectiveCapabilities,
)
from ballast_protocol.vfio_user.codes import Command, DmaMapFlag, HeaderFlag, name_of
from ballast_protocol.vfio_user.device import Description, Device
from ballast_protocol.vfio_user.dma import DmaLayout, DmaRange, OutgoingCommand
from ballast_protocol.vfio_user.events import Completion, Event, RefusalError, Request
from ballast_protocol.vfio_user.message import (
    MAX_VERSION_SIZE,
    Header,
    RegionAccess,
    VersionHead,
    pack_message,
)
from ballast_protocol.vfio_user.recall import Content, KnownRequests
from ballast_protocol.vfio_user.rules import MAX_CONTROL_SIZE, RULES, UNKNOWN, Reply, decode
from ballast_protocol.vfio_user.state import ConnectionState
from ballast_protocol.vfio_user.version import agree

MAX_PENDING = 64
"""Requests that may wait to be finished; more are not read for so long."""

_REPLY, _NO_REPLY = int(HeaderFlag.REPLY), int(HeaderFlag.NO_REPLY)
_FAILED = HeaderFlag.REPLY | HeaderFlag.ERROR


class _Pending(NamedTuple):
    """A request that is not finished, what it consists of, and what it has mapped."""

    request: Request
    content: Content
    mapped: DmaRange | None


class ServerConnection:
    """What both sides have agreed on, which memory is mapped, and which requests are being served.

    Attributes:
        broken: Whether the client broke the protocol; the connection is then of no more use.
        client: What the client can take, defaults included.
        limits: What the client may send, defaults included.
        maps: The ranges that the client has mapped, as of the last message received.
    """

    def __init__(
        self,
        device: Device,
        capabilities: Capabilities = DEFAULT_CAPABILITIES,
        state: ConnectionState | None = None,
    ) -> None:
        """Start before the first message, or go on after one.

        Args:
            device: What the client is to see.
            capabilities: What is offered. A client that does not ask for a member, or leaves no
                room for the answer, goes by the specification's default; so does this side then.
            state: What a predecessor has saved; None before the first message.
        """
        self._device = device
        self._offered = capabilities
        self._negotiated = state is not None
        self._version = b""
        self._header: Header | None = None
        self._fd_count = self._count = 0
        self._pending: dict[int, _Pending] = {}
        self._known = KnownRequests()
        begin = state or ConnectionState(EffectiveCapabilities(), EffectiveCapabilities())
        self._commands = begin.restore_commands()
        self.broken = False
        self.client, self.limits = begin.client, begin.limits
        self.maps = begin.restore_maps()

    def save(self) -> ConnectionState | None:
        """Return what a successor needs to go on from here; None before the first message.

        Raises:
            InternalError: A message is incomplete, or a request is not finished.
        """
        if self._header is not None or self._pending or self.broken:
            raise InternalError("a connection can be saved between two messages only")
        if not self._negotiated:
            return None
        return ConnectionState.of(self.client, self.limits, self.maps, self._commands)

    # Receiving

    @property
    def bytes_wanted(self) -> int:
        """How many bytes to read next: a header, or the payload of the one that has come.

        0 while `MAX_PENDING` requests wait: finish one first. Replies to our own commands come in
        turn with the rest, so no request may wait for one.
        """
        if self._header is not None:
            return self._header.size - Header.SIZE
        return 0 if len(self._pending) >= MAX_PENDING else Header.SIZE

    @property
    def mid_message(self) -> bool:
        """Whether a payload is still to come, so that an end of file now is a truncation."""
        return self._header is not None

    @property
    def pending(self) -> int:
        """How many requests wait to be finished."""
        return len(self._pending)

    def receive(self, data: bytes, fd_count: int = 0) -> Request | Completion | None:
        """Take in the next `bytes_wanted` bytes and the number of descriptors that came with them.

        Returns None after a header whose payload is still to come. The descriptors belong to the
        `Request` that the header's message becomes.

        Raises:
            PeerError: The client broke the protocol; close the connection and all descriptors.
            InternalError: Nothing was wanted, or not so much, or the connection had already ended.
        """
        wanted = self.bytes_wanted
        if self.broken or not wanted or len(data) > wanted:
            raise InternalError(
                f"receive out of turn: broken={self.broken}, pending={self.pending}, "
                f"{len(data)} bytes where {wanted} were wanted"
            )
        try:
            if len(data) < wanted:
                raise TruncatedError(f"{len(data)} bytes of {wanted}, then the end")
            return self._receive(data, fd_count)
        except PeerError as error:
            self.broken = True
            if self._header is None:
                raise
            raise type(error)(f"{name_of(self._header.command)}: {error}") from error

    def recall(self, message: bytes) -> Request | None:
        """Take in a whole message without descriptors if it is known; return None if it is not."""
        known = self._known.find(message)
        if known is None or self.broken or self.bytes_wanted != Header.SIZE:
            return None
        return self._add(*known)

    def _add(self, message_id: int, content: Content, mapped: DmaRange | None = None) -> Request:
        self._count += 1
        request = content.request(self._count, message_id)
        self._pending[self._count] = _Pending(request, content, mapped)
        return request

    def _receive(self, data: bytes, fd_count: int) -> Request | Completion | None:
        if self._header is not None:
            if fd_count:
                raise MalformedError("file descriptors came in the middle of the message")
            return self._finish(self._header, data)
        # Kept even if it is refused, so that the error can name the command.
        self._header, self._fd_count = Header.unpack(data), fd_count
        self._check_header(self._header)
        return None if self.bytes_wanted else self._finish(self._header, b"")

    def _check_header(self, header: Header) -> None:
        check_frame(header, self._max_payload)
        is_reply = bool(int(header.flags) & _REPLY)
        if not self._negotiated and (is_reply or header.command != Command.VERSION):
            raise MalformedError("a session begins with VERSION")
        if is_reply:
            self._check_reply(header)

    @property
    def _max_payload(self) -> int:
        if not self._negotiated:
            return VersionHead.SIZE + MAX_VERSION_SIZE
        return max(RegionAccess.SIZE + self.limits.max_data_xfer_size, MAX_CONTROL_SIZE)

    def _check_reply(self, header: Header) -> None:
        if self._fd_count:
            raise MalformedError(f"{self._fd_count} file descriptors came with a reply")
        self._commands.check_reply(header)

    def _finish(self, header: Header, payload: bytes) -> Request | Completion:
        if int(header.flags) & _REPLY:
            completion = self._commands.finish(header, payload)
            self._header = None
            return completion
        event, mapped = self._decode(header, payload)
        self._header = None
        demanded = not int(header.flags) & _NO_REPLY
        echo = RULES.get(header.command, UNKNOWN).echo
        content = Content(header.command, demanded, event, payload[:echo])
        self._known.remember(header, payload, content)
        return self._add(header.message_id, content, mapped)

    def _begin(self, payload: bytes) -> Event:
        if self._fd_count:
            raise MalformedError(f"{self._fd_count} file descriptors came")
        event, agreed = agree(payload, self._offered)
        self._version, self.client, self.limits = agreed.reply, agreed.client, agreed.limits
        self.maps.limit = self.limits.max_dma_maps
        self._negotiated = True
        return event

    def _decode(self, header: Header, payload: bytes) -> tuple[Event, DmaRange | None]:
        if not self._negotiated:
            return self._begin(payload), None
        error = errno.EINVAL
        try:
            event = decode(header.command, payload, self._fd_count)
            check_event(event, self._device, self.limits)
            return event, self._map(event)
        except PeerError as refusal:
            if isinstance(refusal, RefusalError):
                error = refusal.errno
            reason = f"{name_of(header.command)}: {refusal}"
            return events.Refused(header.command, error, reason), None

    def _map(self, event: Event) -> DmaRange | None:
        match event:
            case events.DmaMap(address, size, flags=flags):
                return self.maps.add(address, size, flags)
            case events.DmaUnmap(address, size):
                self.maps.remove(address, size)
            case events.DmaUnmapAll():
                self.maps.clear()
            case _:
                pass
        return None

    # Answering

    def auto_reply(self, request: Request) -> bytes | None:
        """Finish a request that concerns the protocol alone, or return None if it is another's.

        Like every answer the result may be empty: then there is nothing to send.

        Raises:
            InternalError: `request` is not pending.
        """
        self._find(request)
        match request.event:
            case events.Version():
                return self._reply(request, self._version)
            case events.GetInfo():
                return self._reply(request, self._device.info())
            case events.GetIrqInfo(index):
                return self._reply(request, self._device.irq_info(index))
            case events.GetRegionInfo() | events.GetRegionIoFds():
                described = self._describe(request.event)
                return None if described.with_fds else self._reply(request, described.payload)
            case events.Refused():
                return self.refuse(request, request.event.errno)
            case _:
                return None

    def _describe(self, event: events.GetRegionInfo | events.GetRegionIoFds) -> Description:
        if isinstance(event, events.GetRegionInfo):
            return self._device.region_info(event.index, event.room)
        return self._device.region_io_fds(event.index, event.room)

    def describe(self, request: Request) -> Description:
        """Finish a `GetRegionInfo` or `GetRegionIoFds` that `auto_reply` has left alone.

        Returns the message, and whether to send the region's file, or the eventfds that its
        `io_event_fds` speak of, along with the first byte.

        Raises:
            InternalError: Another kind of request, or it is not pending.
        """
        event = self._find(request).request.event
        if not isinstance(event, events.GetRegionInfo | events.GetRegionIoFds):
            raise InternalError(f"a description to answer {name_of(request.command)}")
        described = self._describe(event)
        message = self._reply(request, described.payload)
        return Description(message, described.with_fds and bool(message))

    def ack(self, request: Request) -> bytes:
        """Finish a request that was carried out and wants no more than that to be known.

        Raises:
            InternalError: The request wants more, was never to be served, or is not pending.
        """
        content = self._find(request).content
        prepared = content.answer_to(request.message_id)
        if prepared is not None:
            del self._pending[request.number]
            return prepared
        wants = RULES.get(request.command, UNKNOWN).reply
        if wants is not Reply.ECHO or isinstance(request.event, events.Refused):
            raise InternalError(f"{name_of(request.command)} wants {wants.value}")
        return self._reply(request, content.echo)

    def reply_data(self, request: Request, data: bytes) -> bytes:
        """Finish a `RegionRead` with the bytes that were read.

        Raises:
            InternalError: Another kind of request, another number of bytes, or it is not pending.
        """
        echo = self._find(request).content.echo
        event = request.event
        if not isinstance(event, events.RegionRead) or len(data) != event.count:
            raise InternalError(f"{len(data)} bytes answer {event!r}")
        return self._reply(request, echo + data)

    def refuse(self, request: Request, error: int) -> bytes:
        """Finish any request by saying that it could not be carried out, except for DMA_UNMAP.

        A range that was to be mapped counts as unmapped again.

        Args:
            request: The request.
            error: An errno.

        Raises:
            InternalError: The client takes its memory back and cannot be refused, or `request` is
                not pending.
        """
        mapped = self._find(request).mapped
        if isinstance(request.event, events.DmaUnmap | events.DmaUnmapAll):
            raise InternalError("DMA_UNMAP cannot be refused")
        if mapped is not None:
            self.maps.discard(mapped)
        return self._reply(request, b"", error)

    def _find(self, request: Request) -> _Pending:
        found = self._pending.get(request.number)
        if found is None or found.request is not request:
            raise InternalError(f"{request!r} is not pending")
        return found

    def _reply(self, request: Request, payload: bytes, error: int = 0) -> bytes:
        del self._pending[request.number]
        if not request.reply_demanded:
            return b""
        flags = _FAILED if error else HeaderFlag.REPLY
        return pack_message(request.message_id, request.command, payload, flags, error)

    # Commands of our own

    @property
    def dma_layout(self) -> DmaLayout:
        """How the client understands our commands, as far as its replies have told."""
        return self._commands.layout

    @property
    def max_dma_transfer(self) -> int:
        """Bytes that one DMA_READ or DMA_WRITE can carry."""
        return min(self.client.max_data_xfer_size, self.limits.max_data_xfer_size)

    def dma_read(self, address: int, count: int) -> OutgoingCommand:
        """Ask for a part of the client's memory.

        Raises:
            AddressError: Not all of it is mapped for reading.
            InternalError: `count` is 0 or beyond `max_dma_transfer`, or too many commands wait.
        """
        self._check_command(address, count, DmaMapFlag.READ)
        return self._commands.read(address, count)

    def dma_write(self, address: int, data: bytes) -> OutgoingCommand:
        """Write to the client's memory. See `dma_layout` for whom this is safe with.

        Raises:
            AddressError: Not all of it is mapped for writing.
            InternalError: `data` is empty or longer than `max_dma_transfer`, too many commands
                wait, or the client would write other bytes.
        """
        self._check_command(address, len(data), DmaMapFlag.WRITE)
        return self._commands.write(address, data)

    def _check_command(self, address: int, count: int, right: DmaMapFlag) -> None:
        if not 0 < count <= self.max_dma_transfer:
            raise InternalError(f"{count} bytes in one command, not 1 to {self.max_dma_transfer}")
        self.maps.check(address, count, right)

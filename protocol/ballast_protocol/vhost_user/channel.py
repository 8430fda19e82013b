"""The back-end's own channel to the front-end (SET_BACKEND_REQ_FD), without I/O.

A balloon has one thing to say on it: the config space has changed. When to say it is the hard part.
QEMU 11.1 follows a null pointer if the notification reaches it while the device is stopped, and the
back-end cannot know in time that a stop has begun. What it can do is split the message:

1. Send the first byte and wait, without blocking anything else, until QEMU has taken it (SIOCOUTQ
   is 0). QEMU's main loop now sits in a blocking read of the other eleven bytes and holds its
   global lock, so no stop can be under way or begin.
2. Serve what has already come on the main connection. Now the rings' state is known for certain.
3. Send the rest at once, for QEMU stands still meanwhile: `rest` if the rings are started, or else
   `cancel`, which turns the message into a request that QEMU does not know and ignores.

The wait in step 1 must not keep the main connection from being served: a guest's CPU may hold the
lock just then, waiting for the answer to GET_CONFIG.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ballast_protocol.errors import MalformedError, PeerError
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    BackendRequest,
    Header,
    HeaderFlag,
    U64Payload,
    pack_message,
)

UNKNOWN_REQUEST = 0x100 | BackendRequest.CONFIG_CHANGE
"""A request that no front-end has. Its first byte is CONFIG_CHANGE's, in either byte order."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A notification in two parts, the second of which decides whether it is one.

    Attributes:
        first: One byte, to be sent and seen taken before anything else.
        rest: The eleven bytes that make it CONFIG_CHANGE. Only while the rings are started.
        cancel: The eleven bytes that make it a request unknown to the front-end.
    """

    first: bytes
    rest: bytes
    cancel: bytes


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the front-end answered to a request that asked for it.

    Attributes:
        request: Which request: CONFIG_CHANGE, or `UNKNOWN_REQUEST` for a cancelled one.
        value: 0 if it was carried out. A cancelled one is answered 1.
    """

    request: int
    value: int


class BackendChannel:
    """Makes the notifications and matches the acknowledgements that come back."""

    def __init__(self, *, may_come: int = 0) -> None:
        """Begin.

        Args:
            may_come: How many acknowledgements may come that predecessors have asked for; or they
                have come already.
        """
        self._may_come = may_come
        self._awaited: deque[tuple[int, ...]] = deque()
        self._buffer = bytearray()

    def config_change(self, *, need_reply: bool = False) -> bytes:
        """Return a whole CONFIG_CHANGE, for a front-end that can take one at any time."""
        flags = self._flags(need_reply, BackendRequest.CONFIG_CHANGE)
        return pack_message(BackendRequest.CONFIG_CHANGE, flags=flags)

    def split_config_change(self, *, need_reply: bool = False) -> ConfigChange:
        """Return a CONFIG_CHANGE to be sent in two steps, as the module's text describes.

        Once `first` has been sent, `rest` or `cancel` has to follow.
        """
        flags = self._flags(need_reply, BackendRequest.CONFIG_CHANGE, UNKNOWN_REQUEST)
        change = pack_message(BackendRequest.CONFIG_CHANGE, flags=flags)
        return ConfigChange(
            change[:1], change[1:], cancel=pack_message(UNKNOWN_REQUEST, flags=flags)[1:]
        )

    def _flags(self, need_reply: bool, *requests: int) -> HeaderFlag:
        if not need_reply:
            return HeaderFlag.VERSION
        self._awaited.append(requests)
        return HeaderFlag.VERSION | HeaderFlag.NEED_REPLY

    def receive(self, data: bytes) -> list[Acknowledgement]:
        """Take in bytes, cut anywhere, and return the acknowledgements that they complete.

        Raises:
            PeerError: What came is no acknowledgement of the request that waits for one. Close the
                channel; the main connection can live without it.
        """
        self._buffer += data
        found = []
        while len(self._buffer) >= Header.SIZE:
            header = Header.unpack(bytes(self._buffer[: Header.SIZE]))
            self._check(header)
            end = Header.SIZE + header.size
            if len(self._buffer) < end:
                break
            value = U64Payload.unpack(bytes(self._buffer[Header.SIZE : end])).value
            del self._buffer[:end]
            if self._awaited:
                self._awaited.popleft()
            else:
                self._may_come -= 1
            found.append(Acknowledgement(header.request, value))
        return found

    def _check(self, header: Header) -> None:
        if header.flags != REPLY_FLAGS or header.size != U64Payload.SIZE:
            raise MalformedError(f"no acknowledgement on the back-end's channel: {header}")
        if not self._awaited and self._may_come:
            return
        if not self._awaited:
            raise PeerError(f"an acknowledgement of {header.request} that nobody asked for")
        if header.request not in self._awaited[0]:
            raise PeerError(
                f"an acknowledgement of {header.request}, where {self._awaited[0][0]} waits for one"
            )

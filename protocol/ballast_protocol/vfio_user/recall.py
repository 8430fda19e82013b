"""Requests that come again and again, known by their bytes instead of being looked at anew.

A virtual CPU waits for every kick, and one differs from the next in nothing but its message id.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from ballast_protocol.vfio_user.codes import HeaderFlag
from ballast_protocol.vfio_user.events import Event, RegionWrite, Request
from ballast_protocol.vfio_user.message import Header, pack_message

_ID_BYTES = 2
"""Bytes of the id that a message begins with."""

_MAX_KNOWN = 64
_MAX_DATA_BYTES = 2
"""The longest write that is known again: a kick is the index of a queue."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a message asks for, whichever id it has.

    Attributes:
        command: The message's code.
        reply_demanded: Whether the client waits.
        event: What is asked for.
        echo: What the reply begins with.
        answer: The whole reply but its id, if nothing can come of it but a success.
    """

    command: int
    reply_demanded: bool
    event: Event
    echo: bytes
    answer: bytes | None = None

    def request(self, number: int, message_id: int) -> Request:
        """Return the request that a message with this content is, the how manieth of all."""
        return Request(number, message_id, self.command, self.reply_demanded, self.event)

    def answer_to(self, message_id: int) -> bytes | None:
        """Return the whole reply to the message with this id, if it is known; it may be empty."""
        if not self.answer:
            return self.answer
        return message_id.to_bytes(_ID_BYTES, sys.byteorder) + self.answer


class KnownRequests:
    """Small writes to regions that were in order once.

    What a device is, and what was agreed on, stay as they are for a whole connection: so they are
    in order whenever they come again.
    """

    def __init__(self) -> None:
        self._contents: dict[bytes, Content] = {}

    def find(self, message: bytes) -> tuple[int, Content] | None:
        """Return the id and the content of a whole message without descriptors, if it is known."""
        content = self._contents.get(message[_ID_BYTES:])
        if content is None:
            return None
        return int.from_bytes(message[:_ID_BYTES], sys.byteorder), content

    def remember(self, header: Header, payload: bytes, content: Content) -> None:
        """Know a message again, if it is of the kind that comes often.

        Now and then all are forgotten: a guest that starts writes much that never comes again.
        """
        event = content.event
        if not isinstance(event, RegionWrite) or len(event.data) > _MAX_DATA_BYTES:
            return
        if len(self._contents) >= _MAX_KNOWN:
            self._contents.clear()
        answer = b""
        if content.reply_demanded:
            answer = pack_message(0, content.command, content.echo, HeaderFlag.REPLY)[_ID_BYTES:]
        known = replace(content, answer=answer)
        self._contents[header.pack()[_ID_BYTES:] + payload] = known

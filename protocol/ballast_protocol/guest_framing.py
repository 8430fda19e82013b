"""How messages are cut out of the agent channel: frames that can be found again after garbage.

A message is a frame. All numbers are little-endian::

    offset  size  field
         0     4  magic: BA A1 A5 F1
         4     1  version of the protocol that the payload is written in
         5     1  kind, see `ballast_protocol.guest.MessageKind`
         6     2  reserved, zero
         8     4  request id; a reply carries its request's, zero means that nobody asked
        12     4  length of the payload in bytes
        16     4  CRC-32 of the 16 bytes above and the payload, top bit cleared
        20     -  payload: one JSON object, in ASCII

The channel has no beginning: a daemon that comes back may get the second half of a message that was
meant for its predecessor. The four magic bytes are all above 0x7f, and nothing else in a frame has
four such bytes in a row (the top bytes of id, length and CRC are below 0x80, the payload is ASCII).
So wherever the magic shows up a frame begins, and one that has not ended by then was cut short.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ballast_protocol.errors import InternalError

MAGIC = b"\xba\xa1\xa5\xf1"
MAX_PAYLOAD_BYTES = 1 << 20
MAX_REQUEST_ID = (1 << 31) - 1

_HEADER = struct.Struct("<4sBBHIII")
_CHECKED = struct.Struct("<4sBBHII")
HEADER_SIZE = _HEADER.size


@dataclass(frozen=True)
class Frame:
    """One message, its payload not yet looked at.

    Attributes:
        kind: 0 to 127, whether or not anyone knows what it means.
        request_id: 0 to `MAX_REQUEST_ID`.
        payload: ASCII, at most `MAX_PAYLOAD_BYTES`.
        version: Version that the payload is written in.
    """

    kind: int
    request_id: int
    payload: bytes
    version: int

    def pack(self) -> bytes:
        """Return the bytes for the channel.

        Raises:
            InternalError: If a field is out of the range that keeps frames recognisable.
        """
        if not (0 <= self.kind < 0x80 and 0 < self.version < 0x80):
            raise InternalError(f"kind {self.kind} or version {self.version} is out of range")
        if not 0 <= self.request_id <= MAX_REQUEST_ID:
            raise InternalError(f"request id {self.request_id} is out of range")
        if len(self.payload) > MAX_PAYLOAD_BYTES or not self.payload.isascii():
            raise InternalError("a payload has to be ASCII and at most MAX_PAYLOAD_BYTES long")
        checked = _CHECKED.pack(
            MAGIC, self.version, self.kind, 0, self.request_id, len(self.payload)
        )
        return checked + _crc(checked, self.payload).to_bytes(4, "little") + self.payload


def _crc(checked: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(checked)) & 0x7FFF_FFFF


class FrameDecoder:
    """Cuts a stream into frames, and finds its feet again after garbage.

    A whole frame is returned as soon as its last byte has been fed, whatever came before it. Time
    and memory are linear in what is fed, and no more than one longest frame is held back, so a
    hostile sender gains nothing by faking headers.

    Attributes:
        skipped_bytes: How many bytes belonged to no good frame.
        resyncs: How often the decoder had to look for the next frame.
    """

    def __init__(self) -> None:
        self.skipped_bytes = 0
        self.resyncs = 0
        self._buffer = bytearray()
        self._searched = len(MAGIC)

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream and return the frames that they complete."""
        self._buffer += data
        frames = []
        while self._seek():
            frame, whole = self._first()
            if frame is not None:
                frames.append(frame)
            if not whole:
                break
        return frames

    def reset(self) -> None:
        """Forget what is held back, because the stream begins anew."""
        self._skip(len(self._buffer))

    def _skip(self, count: int) -> None:
        """Drop bytes from the front that belong to no good frame."""
        if count:
            self.skipped_bytes += count
            self.resyncs += 1
            self._consume(count)

    def _consume(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = len(MAGIC)

    def _seek(self) -> bool:
        """Make the buffer begin with a magic, or with what may become one; tell whether it does."""
        start = self._buffer.find(MAGIC)
        if start < 0:
            tails = (size for size in (3, 2, 1) if self._buffer.endswith(MAGIC[:size]))
            start = len(self._buffer) - next(tails, 0)
            self._skip(start)
            return False
        self._skip(start)
        return True

    def _first(self) -> tuple[Frame | None, bool]:
        """Cut off the frame that the buffer begins with.

        Returns:
            The frame, if it was good; and whether the buffer's first frame was dealt with at all,
            rather than waiting for more bytes.
        """
        end = self._expected_end()
        rival = self._buffer.find(MAGIC, self._searched, end)
        if end < 0 or rival >= 0:
            self._skip(max(rival, len(MAGIC)))
            return None, True
        if len(self._buffer) < end:
            # The last bytes may be the beginning of a magic: search them again.
            self._searched = max(len(MAGIC), len(self._buffer) - len(MAGIC) + 1)
            return None, False
        _, version, kind, _, request_id, _, crc = _HEADER.unpack_from(self._buffer)
        payload = bytes(self._buffer[HEADER_SIZE:end])
        if crc != _crc(bytes(self._buffer[: _CHECKED.size]), payload):
            # Not all of it: if the end is missing, the last bytes may begin the next magic.
            self._skip(len(MAGIC))
            return None, True
        self._consume(end)
        return Frame(kind, request_id, payload, version), True

    def _expected_end(self) -> int:
        """Return where the first frame, or its half-read header, ends; -1 if it is no frame."""
        if len(self._buffer) < HEADER_SIZE:
            return HEADER_SIZE
        _, version, _, reserved, request_id, length, _ = _HEADER.unpack_from(self._buffer)
        if reserved or not version or request_id > MAX_REQUEST_ID or length > MAX_PAYLOAD_BYTES:
            return -1
        return HEADER_SIZE + int(length)

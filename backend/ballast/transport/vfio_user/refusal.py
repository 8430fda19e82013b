"""A client that comes while another one is served, and is told so."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from ballast.streams.fds import FdSet
from ballast.streams.unix import MessageSocket
from ballast_protocol.errors import PeerError
from ballast_protocol.vfio_user.codes import HeaderFlag
from ballast_protocol.vfio_user.message import Header

PATIENCE_SECONDS = 5.0
"""How long a client may take to ask and to leave."""

_DRAIN_BYTES = 4096


class Refusal:
    """Answers the first message with EBUSY, and waits for the client to leave.

    Closing at once would be simpler, but QEMU 11.1 aborts when a connection ends while it waits for
    an answer, and what plugs our device in may be a running VM.
    """

    def __init__(self, sock: socket.socket, ended: Callable[[Refusal], None]) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            ended: Called once, when it is closed.
        """
        self._ended = ended
        self._fds = FdSet()
        self._header = bytearray()
        self._socket = MessageSocket(sock, self._readable, lambda error: self.close())
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self.close)

    def _readable(self) -> None:
        is_asked = len(self._header) == Header.SIZE
        wanted = _DRAIN_BYTES if is_asked else Header.SIZE - len(self._header)
        try:
            with self._fds:
                data = self._socket.receive(wanted, self._fds)
            if data is None:
                return
            if not data:
                self.close()
            elif not is_asked:
                self._header += data
                if len(self._header) == Header.SIZE:
                    self._answer(Header.unpack(bytes(self._header)))
        except PeerError:
            self.close()

    def _answer(self, asked: Header) -> None:
        flags = HeaderFlag.REPLY | HeaderFlag.ERROR
        reply = Header(asked.message_id, asked.command, Header.SIZE, flags, errno.EBUSY)
        self._socket.send(reply.pack())

    def close(self) -> None:
        """Let go of the client; calling it again does nothing."""
        if self._timer.cancelled():
            return
        self._timer.cancel()
        self._socket.close()
        self._ended(self)

"""Tells the guest that the config space has changed, at a moment when QEMU survives it.

QEMU crashes if a CONFIG_CHANGE_MSG reaches it while the device is stopped. The protocol half of the
way out, a message in two parts, is explained in `ballast_protocol.vhost_user.channel`. This is the
other half: it sends the first byte, waits for QEMU to take it without keeping anything else from
being served (a vCPU may hold QEMU's lock and wait for our answer to a config read), and then
decides without delay, because QEMU stands still until the second part comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ballast.streams.fds import FdSet
from ballast.streams.unix import MessageSocket
from ballast_protocol.errors import PeerError
from ballast_protocol.vhost_user.channel import BackendChannel, ConfigChange
from ballast_protocol.vhost_user.message import Header

POLL_SECONDS = (0.0, 0.0001, 0.0002, 0.0005, 0.001, 0.002)
"""Pauses between looks at whether QEMU has taken the first byte; the last one repeats."""


class _Phase(Enum):
    IDLE = "idle"
    OFFERED = "first byte sent"
    SENT = "waiting for the acknowledgement"
    CLOSED = "no more use"


@dataclass
class NotifierCounts:
    """What became of notifications.

    Attributes:
        sent: Reached a running device.
        cancelled: Begun, and called off because the rings had stopped meanwhile.
    """

    sent: int = 0
    cancelled: int = 0


class ConfigNotifier:
    """The back-end's own channel to QEMU (SET_BACKEND_REQ_FD), used for config changes only."""

    def __init__(
        self,
        channel_socket: MessageSocket,
        *,
        need_reply: bool,
        settle: Callable[[], bool],
        failed: Callable[[str], None],
        counts: NotifierCounts,
    ) -> None:
        """Take over the channel.

        Args:
            channel_socket: The connected channel.
            need_reply: REPLY_ACK was negotiated, so QEMU acknowledges.
            settle: Serves what waits on the main channel and returns whether the rings run.
            failed: Told when QEMU has closed the channel.
            counts: Where to count; outlives the channel.
        """
        self._socket = channel_socket
        self._channel = BackendChannel(may_come=channel_socket.outbox.end // Header.SIZE)
        self._need_reply = need_reply
        self._settle = settle
        self._failed = failed
        self._counts = counts
        self._phase = _Phase.IDLE
        self._polls = 0
        self._change: ConfigChange | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self.is_wanted = False

    def go_on(self) -> None:
        """Finish what a predecessor may have begun, at once: QEMU may be standing still.

        Messages go out one after the other and all have the same length, so the outbox tells where
        in a message it was killed.
        """
        try:
            self._socket.flush()
        except PeerError as error:
            self._failed(str(error))
            return
        if self._socket.outbox.end % Header.SIZE:
            self._change = self._channel.split_config_change(need_reply=self._need_reply)
            self._phase = _Phase.OFFERED
            self._look()

    def notify(self) -> None:
        """Ask for a notification; several that wait become one.

        It begins in a turn of its own: whoever asks may be in the middle of serving a request or a
        ring, and `settle` serves requests.
        """
        self.is_wanted = True
        self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Begin the notification that is wanted, if none is under way and the rings run."""
        if not self.is_wanted or self._phase is not _Phase.IDLE or not self._settle():
            return
        if self._is_closed():
            return
        self._change = self._channel.split_config_change(need_reply=self._need_reply)
        try:
            self._socket.send(self._change.first)
        except PeerError as error:
            self._failed(str(error))
            return
        self._phase, self._polls = _Phase.OFFERED, 0
        self._look()

    def _look(self) -> None:
        """Finish at once if QEMU has taken the first byte; otherwise look again later."""
        try:
            untaken = self._socket.unread_by_peer()
        except OSError as error:
            self._failed(str(error))
            return
        if untaken:
            pause = POLL_SECONDS[min(self._polls, len(POLL_SECONDS) - 1)]
            self._polls += 1
            self._timer = self._loop.call_later(pause, self._look)
            return
        self._finish()

    def _finish(self) -> None:
        """QEMU stands still now: decide, and let it go on."""
        assert self._change is not None
        is_running = self._settle()
        if self._is_closed():
            return
        try:
            self._socket.send(self._change.rest if is_running else self._change.cancel)
        except PeerError as error:
            self._failed(str(error))
            return
        self._change = None
        if is_running:
            self._counts.sent += 1
            self.is_wanted = False
        else:
            self._counts.cancelled += 1
        self._phase = _Phase.SENT if self._need_reply else _Phase.IDLE

    def readable(self) -> None:
        """Take the acknowledgement, or notice that QEMU has closed the channel."""
        try:
            with FdSet() as fds:
                data = self._socket.receive(256, fds)
        except PeerError as error:
            self._failed(str(error))
            return
        if data is None:
            return
        if not data:
            self._failed("closed by the front-end")
            return
        try:
            acknowledged = self._channel.receive(data)
        except PeerError as error:
            self._failed(str(error))
            return
        if acknowledged and self._phase is _Phase.SENT:
            self._phase = _Phase.IDLE
            self.pump()

    def _is_closed(self) -> bool:
        """Whether `close` was called: what `settle` serves may end this channel."""
        return self._phase is _Phase.CLOSED

    def close(self) -> None:
        """Stop and close. If QEMU holds the first byte, it is released first."""
        if self._timer is not None:
            self._timer.cancel()
        if self._phase is _Phase.OFFERED and self._change is not None:
            with contextlib.suppress(PeerError):
                self._socket.send(self._change.cancel)
        self._phase = _Phase.CLOSED
        self._socket.close()

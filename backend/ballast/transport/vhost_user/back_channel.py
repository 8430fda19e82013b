"""The channel on which the back-end speaks (SET_BACKEND_REQ_FD), and whether there is one.

Each channel is stored under a number of its own, together with what was sent over it, so that a
successor never takes the one for the other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from ballast.streams.fds import FdSet
from ballast.streams.outbox import Outbox
from ballast.streams.unix import MessageSocket
from ballast.transport.kept import KeptFds
from ballast.transport.vhost_user.notifier import ConfigNotifier, NotifierCounts
from ballast_protocol.errors import MalformedError, StateError

log = logging.getLogger(__name__)


class BackChannel:
    """The present channel, if there is one, and what waits for the next.

    Attributes:
        number: Under which it is stored; None without one.
    """

    def __init__(
        self,
        kept: KeptFds,
        counts: NotifierCounts,
        *,
        settle: Callable[[], bool],
        lost: Callable[[], None],
    ) -> None:
        """Begin without one.

        Args:
            kept: Where channels are kept for a successor.
            counts: Where notifications are counted.
            settle: As `ConfigNotifier` needs it.
            lost: Told when the channel is gone though the session goes on.
        """
        self._kept = kept
        self._counts = counts
        self._settle = settle
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._notifier: ConfigNotifier | None = None
        self._wants_notice = False
        self.number: int | None = None

    def open(self, fds: FdSet, *, need_reply: bool) -> None:
        """Use a new channel from now on.

        Raises:
            MalformedError: It is not a socket.
        """
        try:
            channel = socket.socket(fileno=fds.peek())
        except OSError as error:
            raise MalformedError(f"the back-end's channel is not a socket: {error}") from error
        fds.steal()
        number = (self.number or 0) + 1
        self._let_go()
        outbox = Outbox()
        self._kept.put(_name(number), channel.fileno())
        self._kept.put(_outbox_name(number), outbox.fd)
        self.number = number
        self._use(channel, outbox, need_reply=need_reply)

    def restore(self, number: int | None, *, need_reply: bool) -> None:
        """Take over a predecessor's; `go_on` finishes what it began.

        Raises:
            StateError: It is missing.
        """
        # The config space may have changed meanwhile, or the notification have got lost.
        self._wants_notice = True
        self.number = number
        if number is not None:
            outbox = Outbox(self._kept.take(_outbox_name(number)))
            try:
                channel = socket.socket(fileno=self._kept.take(_name(number)))
            except StateError:
                outbox.close()
                raise
            self._use(channel, outbox, need_reply=need_reply)

    def _use(self, channel: socket.socket, outbox: Outbox, *, need_reply: bool) -> None:
        notifier = ConfigNotifier(
            MessageSocket(
                channel, lambda: notifier.readable(), lambda error: self._failed(str(error)), outbox
            ),
            need_reply=need_reply,
            settle=self._settle,
            failed=self._failed,
            counts=self._counts,
        )
        notifier.is_wanted, self._wants_notice = self._wants_notice, False
        self._notifier = notifier

    def go_on(self) -> None:
        """Finish a predecessor's notification, and see what else is to be told."""
        if self._notifier is not None:
            self._notifier.go_on()
        self.pump_soon()

    def notify(self) -> None:
        """Have the guest read the config space again, as soon as there is a way."""
        if self._notifier is None:
            self._wants_notice = True
        else:
            self._notifier.notify()

    def pump_soon(self) -> None:
        """The rings may have started: a notification that waits for that can go."""
        if self._notifier is not None and self._notifier.is_wanted:
            self._loop.call_soon(self._notifier.pump)

    def _failed(self, reason: str) -> None:
        """Live on without the channel; new targets reach the guest at its next config read."""
        self._let_go()
        log.warning("the channel for config changes is gone: %s", reason or "closed")
        self._lost()

    def _let_go(self) -> None:
        """Close what there is, and remember what it had still to tell."""
        self.close()
        if self.number is not None:
            self._kept.drop(_name(self.number))
            self._kept.drop(_outbox_name(self.number))
            self.number = None

    def close(self) -> None:
        """Close, and leave what is stored."""
        if self._notifier is not None:
            self._wants_notice |= self._notifier.is_wanted
            self._notifier.close()
            self._notifier = None


def _name(number: int) -> str:
    return f"channel.{number}"


def _outbox_name(number: int) -> str:
    return f"channel-outbox.{number}"

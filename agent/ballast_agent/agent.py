"""The loop that joins a session to a channel: polls, reads, writes, and waits for a host.

Nothing here wakes up without cause: a connected agent sleeps until a report is due or the host
speaks, and one without a host looks for it once a second. While blocks are isolated the guest's
memory is watched, with or without a host.
"""

from __future__ import annotations

import logging
import os
import select
import time
from contextlib import suppress

from ballast_agent.blocks.background import Worker
from ballast_agent.blocks.psi import StallAlarm
from ballast_agent.channel import Channel, Endpoint
from ballast_agent.session import AgentSession

RETRY_SECONDS = 1.0
"""How often an agent without a host looks for one."""

STOP_SECONDS = 5.0
"""How long an agent that is to stop waits for the host, to be able to give its blocks back."""

_INPUT = select.POLLIN | select.POLLHUP | select.POLLERR

log = logging.getLogger(__name__)


class Agent:
    """Runs one session over whatever channel the endpoint gives, until told to stop.

    Attributes:
        worker: Does what takes long; for the session's blocks.
    """

    def __init__(
        self, endpoint: Endpoint, session: AgentSession, alarm: StallAlarm | None = None
    ) -> None:
        """Open nothing yet but a pipe.

        Args:
            endpoint: Where the host is to be found.
            session: What to say to it.
            alarm: Tells of stalls; None if nobody needs to know.
        """
        self._endpoint = endpoint
        self._session = session
        self._alarm = alarm
        self._stopping = False
        self._give_up_at: float | None = None
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self._wake_reader, False)
        self.worker = Worker(self._wake)

    def run(self) -> None:
        """Talk to the host until `stop` is called.

        Raises:
            OperatorError: If the endpoint exists and cannot be used.
        """
        missing = False
        while not self._is_done():
            channel = self._endpoint.open()
            if channel is not None:
                missing = False
                self._serve(channel)
            elif not missing:
                missing = True
                log.warning("%s is not there; waiting for it", self._endpoint)
            self._pause()

    def stop(self) -> None:
        """Make `run` return soon; for signal handlers and other threads."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Give back what the agent holds; `run` must have returned."""
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        if self._alarm is not None:
            self._alarm.close()

    def _wake(self) -> None:
        # If there is no room, it is awake already.
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def _is_done(self) -> bool:
        """Tell whether to return: told to stop, and rid of the blocks, or out of patience."""
        blocks = self._session.blocks
        if not self._stopping:
            return False
        if blocks is None or blocks.is_empty:
            return True
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + STOP_SECONDS
            blocks.stop(now)
        if now >= self._give_up_at:
            log.warning("the host does not answer: blocks stay isolated, for the next agent")
            return True
        return blocks.is_empty

    def _serve(self, channel: Channel) -> None:
        """Talk over a channel for as long as it is of any use."""
        log.info("opened %s", self._endpoint)
        try:
            while not self._is_done():
                if channel.host_is_there():
                    self._talk(channel)
                    if not channel.revives:
                        return
                self._pause()
        except ConnectionError as error:
            log.warning("%s is gone: %s", self._endpoint, error.strerror)
        finally:
            self._session.disconnected(time.monotonic())
            channel.close()

    def _talk(self, channel: Channel) -> None:
        """Hold the conversation until the host goes away."""
        session = self._session
        session.connected(time.monotonic())
        while not self._is_done():
            del session.output[: channel.write(session.output)]
            events = self._wait(channel)
            data = channel.read() if events & _INPUT else None
            if data == b"":
                log.info("the host has gone; waiting for it")
                break
            if data:
                session.receive(data, time.monotonic())
            session.tick(time.monotonic())
        if self._stopping:
            # What was given back last should be told too.
            del session.output[: channel.write(session.output)]
        session.disconnected(time.monotonic())

    def _wait(self, channel: Channel) -> int:
        """Sleep until something is to be done and return what poll says of the channel."""
        wanted = select.POLLIN if self._session.wants_input else 0
        timeout = self._timeout()
        if self._session.output:
            wanted |= select.POLLOUT
            # Linux can lose the wake-up after a full queue (virtio_console, reported in 2025-12).
            timeout = RETRY_SECONDS if timeout is None else min(timeout, RETRY_SECONDS)
        return self._poll(timeout, channel, wanted)

    def _timeout(self) -> float | None:
        deadlines = (self._session.deadline(), self._give_up_at)
        due = min((time for time in deadlines if time is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _pause(self) -> None:
        """Wait for a host, and go on watching the guest's memory."""
        until = time.monotonic() + RETRY_SECONDS
        while not self._is_done() and (left := until - time.monotonic()) > 0:
            timeout = self._timeout()
            self._poll(left if timeout is None else min(left, timeout))
            self._session.tick(time.monotonic())

    def _poll(self, timeout: float | None, channel: Channel | None = None, wanted: int = 0) -> int:
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        alarm = None if self._alarm is None else self._alarm.fd
        if alarm is not None:
            poller.register(alarm, select.POLLPRI)
        if channel is not None:
            poller.register(channel, wanted)
        # Rounded up, or the last millisecond before a deadline would be spent spinning.
        ready = dict(poller.poll(None if timeout is None else int(timeout * 1000) + 1))
        self._look_after_blocks(self._wake_reader in ready, alarm in ready)
        return ready.get(channel.fileno(), 0) if channel is not None else 0

    def _look_after_blocks(self, is_awoken: bool, is_stalled: bool) -> None:
        blocks = self._session.blocks
        if is_awoken:
            os.read(self._wake_reader, 4096)
        if blocks is None:
            return
        if is_awoken and self.worker.collect():
            blocks.tick(time.monotonic())
        if is_stalled:
            blocks.stalled(time.monotonic())

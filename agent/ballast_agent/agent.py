"""The loop that joins a session to a channel: polls, reads, writes, and waits for a host.

Nothing here wakes up without cause: a connected agent sleeps until a report is due or the host
speaks, and one without a host looks for it once a second.
"""

from __future__ import annotations

import logging
import os
import select
import time

from ballast_agent.channel import Channel, Endpoint
from ballast_agent.session import AgentSession

RETRY_SECONDS = 1.0
"""How often an agent without a host looks for one."""

_INPUT = select.POLLIN | select.POLLHUP | select.POLLERR

log = logging.getLogger(__name__)


class Agent:
    """Runs one session over whatever channel the endpoint gives, until told to stop."""

    def __init__(self, endpoint: Endpoint, session: AgentSession) -> None:
        self._endpoint = endpoint
        self._session = session
        self._stopping = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)

    def run(self) -> None:
        """Talk to the host until `stop` is called.

        Raises:
            OperatorError: If the endpoint exists and cannot be used.
        """
        missing = False
        while not self._stopping:
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
        os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """Give back what the agent holds; `run` must have returned."""
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _serve(self, channel: Channel) -> None:
        """Talk over a channel for as long as it is of any use."""
        log.info("opened %s", self._endpoint)
        try:
            while not self._stopping:
                if channel.host_is_there():
                    self._talk(channel)
                    if not channel.revives:
                        return
                self._pause()
        except ConnectionError as error:
            log.warning("%s is gone: %s", self._endpoint, error.strerror)
        finally:
            self._session.disconnected()
            channel.close()

    def _talk(self, channel: Channel) -> None:
        """Hold the conversation until the host goes away."""
        session = self._session
        session.connected(time.monotonic())
        while not self._stopping:
            del session.output[: channel.write(session.output)]
            events = self._wait(channel)
            data = channel.read() if events & _INPUT else None
            if data == b"":
                log.info("the host has gone; waiting for it")
                break
            if data:
                session.receive(data, time.monotonic())
            session.tick(time.monotonic())
        session.disconnected()

    def _wait(self, channel: Channel) -> int:
        """Sleep until something is to be done and return what poll says of the channel."""
        session = self._session
        wanted = select.POLLIN if session.wants_input else 0
        deadline = session.deadline()
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if session.output:
            wanted |= select.POLLOUT
            # Linux can lose the wake-up after a full queue (virtio_console, reported in 2025-12).
            timeout = RETRY_SECONDS if timeout is None else min(timeout, RETRY_SECONDS)
        return self._poll(timeout, channel, wanted)

    def _pause(self) -> None:
        if not self._stopping:
            self._poll(RETRY_SECONDS)

    def _poll(self, timeout: float | None, channel: Channel | None = None, wanted: int = 0) -> int:
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        if channel is not None:
            poller.register(channel, wanted)
        # Rounded up, or the last millisecond before a deadline would be spent spinning.
        ready = dict(poller.poll(None if timeout is None else int(timeout * 1000) + 1))
        return ready.get(channel.fileno(), 0) if channel is not None else 0

"""Requests to the agent that wait for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.guest import MemoryReport, Message
from ballast_protocol.guest_blocks import CompactDone, SweepDone
from ballast_protocol.guest_framing import MAX_REQUEST_ID

Answer = TypeVar("Answer", MemoryReport, SweepDone, CompactDone)


class Requests:
    """Who waits for which answer on one agent channel."""

    def __init__(self, send: Callable[[Message, int], None]) -> None:
        self._send = send
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._last_id = 0

    async def ask(self, message: Message, answer: type[Answer], timeout_seconds: float) -> Answer:
        """Send a request and return the answer to it.

        Raises:
            OperatorError: If the agent refuses, or goes away.
            TimedOutError: If it does not answer in time.
        """
        self._last_id = self._last_id % MAX_REQUEST_ID + 1
        request_id = self._last_id
        self._pending[request_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(message, request_id)
            async with asyncio.timeout(timeout_seconds):
                reply = await self._pending[request_id]
        except TimeoutError:
            raise TimedOutError(
                f"the agent in the guest did not answer within {timeout_seconds:g} s",
                hint="See in the guest whether ballast-agent still runs.",
            ) from None
        finally:
            del self._pending[request_id]
        if not isinstance(reply, answer):
            raise OperatorError(f"the agent in the guest answered a {type(reply).__name__}")
        return reply

    def answer(self, request_id: int, message: Message) -> None:
        """Give an answer to whoever waits for it, if anybody does."""
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_result(message)

    def refuse(self, request_id: int, reason: str) -> None:
        """Tell whoever waits for an answer that there will be none."""
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_exception(OperatorError(reason))

    def abandon(self, reason: str) -> None:
        """Tell all who wait."""
        for request_id in self._pending:
            self.refuse(request_id, reason)

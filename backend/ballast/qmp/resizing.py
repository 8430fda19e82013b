"""A resize from the client's side: start it, follow it, and have its result, whatever happens.

The daemon may be replaced while a resize is under way. Its successor goes on with it, so a client
that loses its connection comes back and asks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import EventListener

from ballast.policy.resize import DEFAULT_TIMEOUT_SECONDS, Outcome
from ballast.qmp.client import BalloonClient, CommandRefusedError, connect
from ballast_protocol.errors import OperatorError, TimedOutError

POLL_SECONDS = 1.0
"""How often the daemon is asked if no event comes."""

GRACE_SECONDS = 30.0
"""How much longer than the resize's own time-out the daemon is waited for, or its successor."""

_RETRY_SECONDS = 0.2

Values = Mapping[str, object]


@dataclass
class Follow:
    """Follows one resize.

    Attributes:
        path: The VM's QMP socket.
        on_progress: Called with what `BALLAST_RESIZE_PROGRESS` carries.
        poll_seconds: How often to ask if no event comes.
        number: The resize's number, once it has one.
    """

    path: Path
    on_progress: Callable[[Values], None] = lambda progress: None
    poll_seconds: float = POLL_SECONDS
    number: int | None = None

    async def resize(self, arguments: Values) -> Values:
        """Start a resize with the arguments of `ballast-resize`, and return its result.

        Raises:
            OperatorError: It was refused, or nobody serves the VM.
            TimedOutError: The daemon does not answer, or has gone and no successor has come.
        """
        patience = GRACE_SECONDS + _float(arguments.get("timeout"), DEFAULT_TIMEOUT_SECONDS)
        try:
            async with asyncio.timeout(patience):
                while True:
                    found = await self._attempt(arguments)
                    if found is not None:
                        return found
                    await asyncio.sleep(_RETRY_SECONDS)
        except TimeoutError as error:
            raise TimedOutError(f"no result from {self.path} within {patience:g} s") from error

    async def _attempt(self, arguments: Values) -> Values | None:
        """Follow over one connection; None if that was lost after the resize had begun."""
        try:
            async with connect(self.path) as client:
                with client.resize_events() as events:
                    if self.number is None:
                        self.number = await _start(client, arguments)
                    return await self._result(client, events, self.number)
        except CommandRefusedError:
            raise
        except OperatorError:
            if self.number is None:
                raise
            return None

    async def _result(self, client: BalloonClient, events: EventListener, number: int) -> Values:
        found = await self._ask(client, number)
        while found is None:
            found = await self._hear(events, number)
            if found is None:
                found = await self._ask(client, number)
        return found

    async def _hear(self, events: EventListener, number: int) -> Values | None:
        """Take events until the end has come, or none comes for a while."""
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(self.poll_seconds):
                    event = await events.get()
                data = event["data"]
                if not isinstance(data, Mapping) or data.get("id") != number:
                    continue
                if event["event"] == "BALLAST_RESIZE_DONE":
                    return data
                self.on_progress(data)
        return None

    async def _ask(self, client: BalloonClient, number: int) -> Values | None:
        """Ask how it stands; return the result if there is one."""
        resizing = (await client.query("ballast-status")).get("resizing")
        if not isinstance(resizing, Mapping):
            raise CommandRefusedError(f"{client.name} does not say how its resize goes", "")
        current, last = resizing.get("current"), resizing.get("last")
        if isinstance(last, Mapping) and last.get("id") == number:
            return last
        if not isinstance(current, Mapping) or current.get("id") != number:
            raise CommandRefusedError(
                f"{client.name} knows nothing any more of resize {number}", ""
            )
        self.on_progress(current)
        return None


async def _start(client: BalloonClient, arguments: Values) -> int:
    number = (await client.query("ballast-resize", {**arguments, "wait": False})).get("id")
    if not isinstance(number, int):
        raise CommandRefusedError(f"{client.name} gave its resize no number", "")
    return number


def check_reached(result: Values) -> None:
    """Check that a resize has reached its target.

    Raises:
        TimedOutError: It has timed out.
        OperatorError: It has ended in another way; the message is its explanation.
    """
    outcome, explanation = result.get("result"), str(result.get("explanation"))
    if outcome == Outcome.TIMED_OUT.value:
        raise TimedOutError(explanation)
    if outcome != Outcome.REACHED.value:
        raise OperatorError(explanation)


def _float(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default

"""The balloon that is QEMU's own, seen and moved through QEMU's monitor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ballast.qmp.monitor import QemuMonitor
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.qmp import ErrorClass, RefusedError
from ballast_protocol.virtio.balloon import DEVICE_NAME, STATISTIC_UNSET, STATISTICS

_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")
_INTERVAL = "guest-stats-polling-interval"
_QUICKEST_SECONDS = 1
"""QEMU asks the guest for statistics once in so many whole seconds, never on demand."""

_POLL_SECONDS = 0.1


@dataclass
class BuiltinStats:
    """The statistics that QEMU holds; implements `qmp.control.GuestStats`.

    Attributes:
        values: By tag, only what the guest sent.
        last_update: When they came, in seconds since the Unix epoch; 0 if none ever did.
    """

    values: dict[int, int] = field(default_factory=dict)
    last_update: int = 0


class BuiltinBalloon:
    """QEMU's balloon, as it was when we last looked.

    Attributes:
        path: Where it is in QEMU; empty while there is none.
        ram_bytes: The machine's size; None while unknown.
        actual_bytes: The logical size that the guest says it has; None while unknown.
        stats: The newest statistics.
        polling_interval: Seconds between two polls for statistics; 0 means that QEMU does not.
        problem: Why it cannot be used; empty if it can.
    """

    def __init__(self, monitor: QemuMonitor) -> None:
        self._monitor = monitor
        self._refreshing = asyncio.Lock()
        self.forget()

    def forget(self) -> None:
        """QEMU is gone, and everything with it."""
        self.path = ""
        self.ram_bytes: int | None = None
        self.actual_bytes: int | None = None
        self.stats = BuiltinStats()
        self.polling_interval = 0
        self.problem = ""

    @property
    def has_driver(self) -> bool:
        """Whether the guest's driver has shown itself since the guest began.

        QEMU does not tell. But a driver sends statistics when it starts, which a reset of the
        guest takes away, and one that does not send any still moves `actual_bytes`.
        """
        if self.actual_bytes is None:
            return False
        return self.stats.last_update != 0 or self.actual_bytes != self.ram_bytes

    @property
    def stats_age_seconds(self) -> float | None:
        """How old the statistics are, by the clock of the host; None if none ever came."""
        if not self.stats.last_update:
            return None
        return max(0.0, time.time() - self.stats.last_update)

    async def look(self) -> None:
        """See how it is.

        Raises:
            RefusedError: QEMU does not answer, or not as it should.
        """
        if not self.path:
            self.path = await self._find()
        summary = await self._monitor.execute("query-memory-size-summary")
        self.ram_bytes = summary["base-memory"] + summary.get("plugged-memory", 0)
        try:
            self.actual_bytes = (await self._monitor.execute("query-balloon"))["actual"]
        except RefusedError as error:
            self.actual_bytes, self.problem = None, _explain(error)
            return
        self.problem = ""
        if self.path:
            interval = await self._get(_INTERVAL)
            if not self._refreshing.locked():
                # Otherwise it is ours, and lasts as long as the guest is asked.
                self.polling_interval = interval
            await self._read_stats()

    async def ask(self, size_bytes: int) -> None:
        """Ask the guest for a logical size.

        Raises:
            RefusedError: QEMU refuses.
        """
        await self._monitor.execute("balloon", {"value": size_bytes})

    async def set_polling_interval(self, seconds: int) -> None:
        """Have QEMU poll for statistics every so many seconds; 0 to stop.

        Raises:
            RefusedError: QEMU refuses.
        """
        await self._set_interval(seconds)
        self.polling_interval = seconds

    async def refresh_stats(self, timeout_seconds: float) -> None:
        """Have the guest asked for statistics, and return when they are there.

        Raises:
            OperatorError: There is no balloon that could be asked.
            TimedOutError: The guest did not answer in time.
        """
        if not self.path:
            raise OperatorError(self.problem or "QEMU is not connected")
        async with self._refreshing:
            before = await self._read_stats()
            async with self._polled():
                await self._until_newer(before, timeout_seconds)

    async def _until_newer(self, before: int, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while await self._read_stats() == before:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise TimedOutError(
                f"the guest sent no statistics within {timeout_seconds:g} s",
                hint="QEMU asks for them once a second at most, and not while the guest is "
                "paused; a guest without a balloon driver does not answer.",
            ) from None

    @contextlib.asynccontextmanager
    async def _polled(self) -> AsyncIterator[None]:
        """Have QEMU poll as often as it can for a while."""
        usual = await self._get(_INTERVAL)
        if usual == _QUICKEST_SECONDS:
            yield
            return
        await self._set_interval(_QUICKEST_SECONDS)
        try:
            yield
        finally:
            with contextlib.suppress(RefusedError):
                await self.set_polling_interval(usual)

    async def _read_stats(self) -> int:
        """Take QEMU's statistics, and return when they came."""
        found: Mapping[str, Any] = await self._get("guest-stats")
        sent = {
            each.tag: found["stats"][each.name]
            for each in STATISTICS
            if found["stats"].get(each.name, STATISTIC_UNSET) != STATISTIC_UNSET
        }
        self.stats = BuiltinStats(sent, found["last-update"])
        return self.stats.last_update

    async def _find(self) -> str:
        """Return the path of the balloon's device; empty if there is none."""
        for place in _PLACES:
            for each in await self._monitor.execute("qom-list", {"path": place}):
                if each["type"].startswith(f"child<{DEVICE_NAME}"):
                    return f"{place}/{each['name']}"
        return ""

    async def _get(self, name: str) -> Any:
        return await self._monitor.execute("qom-get", {"path": self.path, "property": name})

    async def _set_interval(self, seconds: int) -> None:
        arguments = {"path": self.path, "property": _INTERVAL, "value": seconds}
        await self._monitor.execute("qom-set", arguments)


def _explain(error: RefusedError) -> str:
    if error.error_class is ErrorClass.DEVICE_NOT_ACTIVE:
        return "this VM has no balloon: start QEMU with -device virtio-balloon-pci,id=balloon0"
    return f"QEMU's balloon cannot be used: {error}"

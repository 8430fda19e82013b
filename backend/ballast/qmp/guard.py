"""What may not be asked of QEMU while its balloon is ours.

QEMU 11.1 ends with SIGSEGV when it is asked for the virtio status of a generic vhost-user device
that a driver has started, or for that of its queues: it calls a function that such a device does
not have. Of other devices it may be asked, so the paths decide: those of balloons, as QEMU lists
them, and everything that could lead to one, are refused.
"""

from __future__ import annotations

import shlex

from ballast.qmp.monitor import QemuMonitor
from ballast_protocol.qmp import Command, RefusedError
from ballast_protocol.virtio.balloon import DEVICE_NAME

_QUERIES = frozenset(
    ("x-query-virtio-status", "x-query-virtio-queue-status", "x-query-virtio-vhost-queue-status")
)
_HUMAN_QUERIES = frozenset(query.removeprefix("x-query-") for query in _QUERIES)


async def check_harmless(monitor: QemuMonitor, command: Command) -> None:
    """Hold a command back that would end QEMU.

    Raises:
        RefusedError: It would, or might.
    """
    path = _path_of(command)
    if path is None or path in await _other_devices(monitor):
        return
    raise RefusedError(
        f"{command.name} is held back: QEMU 11.1 crashes when it looks into the virtio state of a "
        "balloon that is a vhost-user device",
        hint="ballast-status has the state of the balloon; for other devices give the path exactly "
        "as x-query-virtio lists it",
    )


def _path_of(command: Command) -> str | None:
    """Return the path that a dangerous command asks about; None if it is not dangerous."""
    if command.name in _QUERIES:
        return str(command.arguments.get("path", ""))
    if command.name != "human-monitor-command":
        return None
    words = _words(str(command.arguments.get("command-line", "")))
    if words[:1] != ["info"] or not _HUMAN_QUERIES.intersection(words[1:2]):
        return None
    return words[2] if len(words) > 2 else ""


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


async def _other_devices(monitor: QemuMonitor) -> set[str]:
    listed = await monitor.execute("x-query-virtio")
    return {each["path"] for each in listed if each["name"] != DEVICE_NAME}

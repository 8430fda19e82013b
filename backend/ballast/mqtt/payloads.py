"""What the messages say: JSON objects in the words of `ballast-status` and QEMU's `guest-stats`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ballast.policy.result import ResizeResult
from ballast.qmp.control import BalloonControl
from ballast_protocol.errors import BallastError, OperatorError
from ballast_protocol.virtio.balloon import STATISTICS

Json = dict[str, object]
"""A JSON object."""

WITHOUT_QEMU = "waiting-for-qemu"
"""The state of a VM that has no QEMU."""


def encode(value: Mapping[str, object]) -> bytes:
    """Return a JSON object as bytes."""
    return json.dumps(value, separators=(",", ":"), default=str).encode()


def dig(value: object, *keys: str) -> object:
    """Return what is at a path of keys in nested mappings, or None."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def state(vm: BalloonControl, status: Mapping[str, object]) -> Json:
    """Return what a VM should have and has; it changes only when one of these does."""
    resizing = vm.governor.status()
    return {
        "name": vm.name,
        "state": status.get("state"),
        "problem": status.get("problem"),
        "settled": status.get("settled"),
        "ram-bytes": vm.ram_bytes,
        "target-bytes": vm.target_bytes,
        "actual-bytes": vm.actual_bytes,
        "ledger-bytes": dig(status, "ledger", "bytes"),
        "guest": resizing.get("guest"),
        "hold": resizing.get("hold"),
        "inhibit": resizing.get("inhibit"),
        "agent": dig(status, "agent", "state"),
    }


def is_available(status: Mapping[str, object]) -> bool:
    """Whether a VM's QEMU is connected."""
    return status.get("state") != WITHOUT_QEMU


def stats(
    vm: BalloonControl, status: Mapping[str, object], unix_seconds: float, problem: str
) -> Json:
    """Return what the guest says about its memory, and what the host holds of it.

    Args:
        vm: The VM.
        status: Its status at this time.
        unix_seconds: This time, in seconds since the Unix epoch.
        problem: Why the guest gave no new statistics; empty if it gave some.
    """
    newest, age = vm.guest_stats, vm.stats_age_seconds
    return {
        "unix-seconds": round(unix_seconds, 3),
        "fresh": not problem,
        "problem": problem,
        "last-update": newest.last_update,
        "age-seconds": None if age is None else round(age, 3),
        "stats": {
            each.name: newest.values[each.tag] for each in STATISTICS if each.tag in newest.values
        },
        "host": status.get("host"),
        "discarded-bytes": dig(status, "counters", "discarded-bytes"),
        "reported-bytes": dig(status, "counters", "reported-bytes"),
        "agent": _agent(status),
    }


def _agent(status: Mapping[str, object]) -> Json | None:
    """Return the agent's last report, without what only debugging needs."""
    report = dig(status, "agent", "report")
    if not isinstance(report, Mapping):
        return None
    return {key: report.get(key) for key in ("age-seconds", "meminfo-bytes", "pressure")}


def failure(vm_name: str, error: BallastError) -> Json:
    """Return the result of a command that was not carried out."""
    hint = error.hint if isinstance(error, OperatorError) else ""
    return {"vm": vm_name, "result": "refused", "error": {"desc": str(error), "hint": hint}}


def interrupted(vm_name: str) -> Json:
    """Return the result of a command that the end of the daemon came in between."""
    error = {
        "desc": "Ballast has ended before there was a result; the target is in force",
        "hint": "Look at the VM's state, or send the target again.",
    }
    return {"vm": vm_name, "result": "interrupted", "error": error}


def outcome(vm_name: str, result: ResizeResult) -> Json:
    """Return the result of a command that was carried out."""
    return {"vm": vm_name, **result.as_dict()}

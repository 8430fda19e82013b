"""How people write sizes, times and addresses on the agent's command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from ballast_agent.channel import Vsock

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def byte_count(text: str) -> int:
    """Return a size such as `512M` in bytes.

    Raises:
        ArgumentTypeError: If it is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M")
    return int(match[1]) << _UNITS[match[2].upper()]


def duration(low: float, high: float) -> Callable[[str], float]:
    """Return a reader of times within bounds, in seconds."""

    def read(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not low <= seconds <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a time from {low:g} to {high:g} s")
        return seconds

    return read


def unix_socket(text: str) -> str:
    """Return the path in `unix:PATH`.

    Raises:
        ArgumentTypeError: If it has another form.
    """
    scheme, _, path = text.partition(":")
    if scheme != "unix" or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form unix:PATH")
    return path


def vsock_address(text: str) -> tuple[int, int]:
    """Return port and context id of `PORT` or `CID:PORT`.

    Raises:
        ArgumentTypeError: If it has another form.
    """
    cid, _, port = text.rpartition(":")
    if not port.isdecimal() or not (cid or "2").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form PORT or CID:PORT")
    return int(port), int(cid) if cid else Vsock(0).cid

"""Sizes as people write them, with QEMU's meaning: `1G` is 1024 MiB."""

from __future__ import annotations

import re

from ballast_protocol.errors import OperatorError

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: `1G`, `1.5GiB`, `512M`, `1073741824`.

    Raises:
        OperatorError: It is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OperatorError(
            f"{text!r} is not a size", hint="Write it like 512M, 1.5G or 1073741824 (bytes)."
        )
    value = (
        float(match[1]) * _UNITS[match[2].upper()]
        if "." in match[1]
        else (int(match[1]) * _UNITS[match[2].upper()])
    )
    if value != int(value):
        raise OperatorError(f"{text!r} is not a whole number of bytes")
    return int(value)


def format_size(size_bytes: int) -> str:
    """Return a size for people: `1.50 GiB`, `512 MiB`, `12 KiB`."""
    sign, size = ("-" if size_bytes < 0 else ""), abs(size_bytes)
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            amount = size / factor
            return f"{sign}{amount:.2f} {unit}" if size % factor else f"{sign}{amount:.0f} {unit}"
    return f"{sign}{size} B"

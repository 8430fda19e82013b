"""Sizes as people write them, with QEMU's meaning: `1G` is 1024 MiB."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ballast_protocol.errors import OperatorError

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")
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


@dataclass(frozen=True)
class SizeWanted:
    """A size as an operator wants it: in itself, as a share of the RAM, or from where it is.

    Attributes:
        size_bytes: The size, or by how much it differs.
        share: The share of the RAM; None if it is none.
        sign: 1 for more and -1 for less than the present target; 0 if it is a size in itself.
    """

    size_bytes: int = 0
    share: float | None = None
    sign: int = 0

    @property
    def is_absolute(self) -> bool:
        """Whether nothing need be known to tell what it is."""
        return self.share is None and not self.sign

    def resolve(self, ram_bytes: int | None, target_bytes: int | None) -> int:
        """Return the size that is meant.

        Args:
            ram_bytes: The machine's RAM; None if unknown.
            target_bytes: The present target; None means all of the RAM.

        Raises:
            OperatorError: What it depends on is not known, or nothing would be left.
        """
        if self.is_absolute:
            return self.size_bytes
        base = ram_bytes if self.share is not None or target_bytes is None else target_bytes
        if base is None:
            raise OperatorError(
                "the machine's size is not known before QEMU is there",
                hint="Name the size itself: 512M, 2G.",
            )
        if self.share is not None:
            return max(int(base * self.share), 1)
        size = base + self.sign * self.size_bytes
        if size <= 0:
            raise OperatorError(
                f"{format_size(self.size_bytes)} less than {format_size(base)} leaves nothing"
            )
        return size


def parse_size_wanted(text: str) -> SizeWanted:
    """Return what `text` means: `1G`, `50%` of the RAM, `+512M` or `-1G` from the present target.

    Raises:
        OperatorError: It is none of these, or says 0.
    """
    text = text.strip()
    if match := _SHARE.fullmatch(text):
        share = float(match[1]) / 100
        if not 0 < share <= 1:
            raise OperatorError(f"{text!r} is not a share of a machine's memory")
        return SizeWanted(share=share)
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    size = parse_size(text[1:] if sign else text)
    if size <= 0:
        raise OperatorError("a guest needs more than 0 bytes" if not sign else "0 changes nothing")
    return SizeWanted(size, sign=sign)


def format_size(size_bytes: int) -> str:
    """Return a size for people: `1.50 GiB`, `512 MiB`, `12 KiB`."""
    sign, size = ("-" if size_bytes < 0 else ""), abs(size_bytes)
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            amount = size / factor
            return f"{sign}{amount:.2f} {unit}" if size % factor else f"{sign}{amount:.0f} {unit}"
    return f"{sign}{size} B"

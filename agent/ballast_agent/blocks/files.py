"""Small files of `/proc` and `/sys`: read, written, and every failure said in words."""

from __future__ import annotations

import os
from pathlib import Path

from ballast_protocol.errors import OperatorError


def read_text(path: Path) -> str:
    """Return what is in a file.

    Raises:
        OperatorError: If it is not there, or may not be read.
    """
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise refused(path, "read", error) from error


def read_number(path: Path) -> int:
    """Return the number in a file.

    Raises:
        OperatorError: As for `read_text`, or if it is no number.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError:
        raise OperatorError(f"{path} holds no number: {text[:40]!r}") from None


def optional_number(path: Path) -> int:
    """Return the number in a file; zero if this kernel has no such file."""
    return read_number(path) if path.exists() else 0


def write_text(path: Path, text: str) -> None:
    """Write to a file, with one system call.

    Raises:
        OperatorError: If it may not be written, or the kernel refuses what was written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise refused(path, "written", error) from error


def refused(path: Path, verb: str, error: OSError) -> OperatorError:
    """Return the error that says so in words."""
    hint = "run as root" if isinstance(error, PermissionError) else ""
    return OperatorError(f"{path} cannot be {verb}: {error.strerror}", hint=hint)

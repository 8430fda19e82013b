"""Which version of Ballast this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ballast_protocol.qmp import Version


def ballast_version() -> str:
    """Return the installed version, `0+unknown` in a checkout that was never installed."""
    try:
        return version("ballast")
    except PackageNotFoundError:
        return "0+unknown"


def qmp_version() -> Version:
    """Return the version as QMP's greeting states it."""
    parts = [int(part) for part in ballast_version().split(".")[:3] if part.isdigit()]
    major, minor, micro = (*parts, 0, 0, 0)[:3]
    return Version(major, minor, micro, f"ballast-{ballast_version()}")

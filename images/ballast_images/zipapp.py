"""The guest agent as one file that any Python 3.9 or later runs, the same bytes every time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("ballast_agent", "ballast_protocol")
"""What the file holds: the agent, and the one package of ours that it imports."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = b"import sys\n\nfrom ballast_agent.__main__ import main\n\nsys.exit(main())\n"


def agent_sources() -> dict[str, bytes]:
    """Return the Python files of `PACKAGES` by their path inside the archive."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.origin:
            continue
        directory = Path(spec.origin).parent
        for path in directory.rglob("*.py"):
            found[str(path.relative_to(directory.parent))] = path.read_bytes()
    return found


def agent_archive(sources: Mapping[str, bytes]) -> bytes | None:
    """Return `sources` as a zip application, or None if the agent is not among them."""
    if "ballast_agent/__main__.py" not in sources:
        return None
    files = {**sources, "__main__.py": _MAIN}
    out = io.BytesIO(b"#!/usr/bin/env python3\n")
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return out.getvalue()

"""How the tests are run: in which order, and by which of two processes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Set by whoever starts test processes, and taken for the width of a terminal; tests set their own.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Examples are slow where the machine is busy; that says nothing of the code.
settings.register_profile("ballast", deadline=None)
settings.load_profile("ballast")


AT_THE_END = ("test_demo.py", "test_soak.py")
"""Guests that nothing else disturbs: the process that is done with all other files takes them."""


@cache
def _boots_guests(path: Path) -> bool:
    """Return whether a file of tests boots guests, by its mark."""
    return "pytest.mark.guest" in path.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that boot guests, because they take longest."""
    items.sort(key=lambda item: (item.path.name in AT_THE_END, not _boots_guests(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Have one process run nearly all files that boot guests; each other file is by itself.

    Under emulation two guests at once take the whole machine, and each other's time.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GuestsTogether(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            path = config.rootpath / file
            together = _boots_guests(path) and path.name not in AT_THE_END
            return "guests" if together else file

    return GuestsTogether(config, log)

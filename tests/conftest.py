"""How the tests are run: in which order, and by which of two processes."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Set by whoever starts test processes, and taken for the width of a terminal; tests set their own.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Examples are slow where the machine is busy; that says nothing of the code.
settings.register_profile("ballast", deadline=None)
settings.load_profile("ballast")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all files with guests into one group, which one process runs; others are apart.

    Under emulation two guests at once take the whole machine, and each other's time. The group
    comes first, because it takes longest.
    """
    with_guests = {item.path for item in items if item.get_closest_marker("guest")}
    for item in items:
        group = "guests" if item.path in with_guests else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path not in with_guests)

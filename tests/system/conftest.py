"""The QEMU and the guest that all system tests use; provisioned once, then from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballast.daemon.config import Transport
from ballast_images.guest import GuestImage, build_guest
from ballast_images.qemu import find_qemu


@pytest.fixture(scope="session")
def qemu() -> Path:
    return find_qemu().command


@pytest.fixture(scope="session")
def image() -> GuestImage:
    return build_guest()


@pytest.fixture(params=["vhost-user", "vfio-user"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """What QEMU speaks to the balloon."""
    return "vfio-user" if request.param == "vfio-user" else "vhost-user"

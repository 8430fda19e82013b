"""Real QEMU and real guests for tests: fixtures, imported by each `conftest.py` that needs them.

What they need is provisioned on first use, which can take minutes on a slow network; after that
they cost nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast_images.accelerator import accelerator
from ballast_images.guest import GuestImage, build_guest
from ballast_images.machine import Machine
from ballast_images.qemu import Qemu, find_qemu

GUEST_MEMORY_BYTES = 1 << 30
"""RAM of a test's guest unless the test says otherwise."""


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    """A QEMU with the devices that Ballast needs."""
    return find_qemu()


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """The stock guest with the agent as it is in this checkout."""
    return build_guest()


@pytest.fixture(scope="session")
def accelerator_name(qemu: Qemu) -> str:
    """What runs guests best here: `kvm` or `tcg`."""
    return accelerator(qemu).name


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose path is short enough for sockets; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="ballast-") as directory:
        yield Path(directory)


@pytest.fixture
def machine(
    qemu: Qemu, guest_image: GuestImage, accelerator_name: str, socket_dir: Path
) -> Machine:
    """A guest without a balloon; `dataclasses.replace` makes it what a test needs."""
    return Machine(
        qemu=qemu.command,
        image=guest_image,
        directory=socket_dir,
        memory_bytes=GUEST_MEMORY_BYTES,
        accelerator=accelerator_name,
    )

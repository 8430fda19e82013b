"""Plans of VMs for recipes, and what reads a recipe's commands back."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan
from ballast_images.apt import RELEASE
from ballast_images.guest import GuestImage
from ballast_images.progress import ConsoleReporter
from ballast_images.provision import provision
from ballast_protocol.errors import OperatorError

IMAGE = GuestImage(Path("/srv/vmlinuz"), Path("/srv/initrd"), "6.12")

AWKWARD = ("-drive", "file=/srv/a b%n$HOME${X}$(id)'\"\\;.qcow2,if=virtio", "-nographic")
"""Arguments of which every form has to quote something."""


def plan(*arguments: str, accelerator: str = "kvm", **options: object) -> LaunchPlan:
    """Return a plan for `web`; the guest for trials boots if there are no arguments."""
    return LaunchPlan(
        config=VmConfig.model_validate({"name": "web", **options}),
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        memory_bytes=1 << 30,
        cpus=2,
        accelerator=accelerator,
        image=None if arguments else IMAGE,
        arguments=arguments,
    )


def from_shell(text: str) -> list[str]:
    """Return the words of a command as a shell reads it."""
    return shlex.split(text.replace("\\\n", " "))


def from_systemd(text: str) -> list[str]:
    """Return the words of `ExecStart=` as systemd.service(5) describes its reading."""
    words = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', text.replace("\\\n", " "))
    assert all(not plain or not set(plain) & set("%$\\'\"") for _, plain in words)
    quoted = (re.sub(r"\\(.)", r"\1", each or plain) for each, plain in words)
    literal = []
    for word in quoted:
        rest = word.replace("%%", "").replace("$$", "")
        assert not set(rest) & set("%$"), f"{word} would be expanded"
        literal.append(word.replace("%%", "%").replace("$$", "$"))
    return literal


def debian_files(name: str, package: str) -> Path:
    """Return where a Debian package is unpacked in the cache; skip the test if it cannot be had."""
    try:
        tree = provision(
            name,
            lambda apt: apt.exactly([package], suite=RELEASE),
            package,
            ConsoleReporter(),
        )
    except OperatorError as error:
        pytest.skip(f"{package} of Debian is neither in the cache nor to be had: {error}")
    return tree.root

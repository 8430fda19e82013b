"""Finding a QEMU that has both out-of-process device front-ends, or provisioning one.

What counts is what a QEMU answers when it is asked for its devices; versions are only shown.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ballast_images.apt import BACKPORTS, Package, PrivateApt
from ballast_images.cache import write_whole
from ballast_images.progress import ConsoleReporter, Reporter
from ballast_images.provision import Tree, cached_tree, provision
from ballast_protocol.errors import OperatorError

BINARY = "qemu-system-x86_64"

REQUIRED_DEVICES = ("vhost-user-test-device-pci", "vfio-user-pci")
"""The front-ends that Ballast's two transports speak with."""

INSTALL_HINT = (
    f"Install QEMU 10.2 or later with the devices {' and '.join(REQUIRED_DEVICES)}: Debian 13 has "
    f"it in {BACKPORTS}, and other distributions may leave these devices out."
)

_TREE = "qemu"
_ASK_TIMEOUT_S = 30.0
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")


@dataclass(frozen=True)
class Qemu:
    """A QEMU that can be run.

    Attributes:
        command: The program; one path that works wherever it is pasted.
        version: What it calls itself: `11.1.3`.
        devices: Which of `REQUIRED_DEVICES` it has.
        origin: Whether it was named by the operator, found on PATH, or provisioned.
    """

    command: Path
    version: str
    devices: frozenset[str]
    origin: Literal["explicit", "path", "provisioned"]

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of `REQUIRED_DEVICES` it lacks."""
        return tuple(device for device in REQUIRED_DEVICES if device not in self.devices)


def find_qemu(
    path: Path | None = None,
    *,
    should_provision: bool = True,
    refresh: bool = False,
    reporter: Reporter | None = None,
) -> Qemu:
    """Return a QEMU with all of `REQUIRED_DEVICES`.

    Looked for in this order: `path`, if given, and nowhere else; PATH; the cache; Debian.

    Args:
        path: The QEMU that the operator insists on.
        should_provision: Whether one may be downloaded.
        refresh: Download the newest, whatever PATH and the cache have.
        reporter: Shows what takes time.

    Raises:
        OperatorError: There is none, or `path` lacks a device.
    """
    if path is not None:
        return _complete(ask(path, "explicit"))
    if not refresh and (found := qemu_on_path() or cached_qemu()):
        return found
    if not should_provision:
        raise OperatorError("no QEMU with Ballast's devices was found", hint=INSTALL_HINT)
    tree = provision(_TREE, _packages, "QEMU", reporter or ConsoleReporter(), refresh=refresh)
    return _complete(ask(_wrapper(tree), "provisioned"))


def qemu_on_path() -> Qemu | None:
    """Return the QEMU on PATH if it has all of `REQUIRED_DEVICES`."""
    found = shutil.which(BINARY)
    if found is None:
        return None
    try:
        qemu = ask(Path(found), "path")
    except OperatorError:
        # A broken one on PATH is no reason not to use a good one.
        return None
    return None if qemu.missing else qemu


def cached_qemu() -> Qemu | None:
    """Return the QEMU that was provisioned earlier, if any."""
    tree = cached_tree(_TREE)
    return _complete(ask(_wrapper(tree), "provisioned")) if tree else None


def ask(command: Path, origin: Literal["explicit", "path", "provisioned"]) -> Qemu:
    """Return what the program at `command` says about itself.

    Raises:
        OperatorError: It does not run, or is no QEMU.
    """
    version = re.search(r"QEMU emulator version (\S+)", _output(command, "--version"))
    if version is None:
        raise OperatorError(f"{command} is not a QEMU system emulator")
    listed = _output(command, "-machine", "none", "-device", "help")
    devices = set(re.findall(r'^name "([^"]+)"', listed, re.MULTILINE))
    return Qemu(
        command.absolute(), version[1], frozenset(devices.intersection(REQUIRED_DEVICES)), origin
    )


def _output(command: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            [str(command), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise OperatorError(f"{command} does not run: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OperatorError(f"{command} does not run: {error}") from error
    return result.stdout


def _complete(qemu: Qemu) -> Qemu:
    if qemu.missing:
        raise OperatorError(
            f"{qemu.command} (QEMU {qemu.version}) has no {' and no '.join(qemu.missing)}",
            hint=INSTALL_HINT,
        )
    return qemu


def _packages(apt: PrivateApt) -> Sequence[Package]:
    return apt.closure(["qemu-system-x86"], suite=BACKPORTS)


def _wrapper(tree: Tree) -> Path:
    """Return the program that runs a provisioned QEMU with its own C library and modules.

    QEMU looks for its files relative to the executable, which under a loader is the loader; hence
    the variable and the options.
    """
    wrapper = tree.root.parent / "bin" / BINARY
    if not wrapper.exists():
        write_whole(wrapper, _wrapper_script(tree.root).encode(), mode=0o755)
    return wrapper


def _wrapper_script(root: Path) -> str:
    libraries = root / _LIBRARIES
    words: list[str | Path] = [
        libraries / "ld-linux-x86-64.so.2",
        *("--argv0", BINARY, "--library-path", libraries, root / "usr/bin" / BINARY),
        *("-L", root / "usr/share/qemu", "-L", root / "usr/share/seabios"),
    ]
    command = " ".join(shlex.quote(os.fspath(word)) for word in words)
    modules = shlex.quote(os.fspath(libraries / "qemu"))
    return f'#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\nexec {command} "$@"\n'

"""Finding mosquitto, the MQTT broker, and its command line clients, or provisioning them.

Ballast itself needs none. Its tests do, and so do people who want to try the bridge.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ballast_images.apt import RELEASE, Package, PrivateApt
from ballast_images.cache import write_whole
from ballast_images.progress import ConsoleReporter, Reporter
from ballast_images.provision import Tree, cached_tree, provision

BROKER = "mosquitto"
CLIENTS = ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "mosquitto_passwd")

_TREE = "broker"
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian puts daemons; often not on a user's PATH."""


@dataclass(frozen=True)
class Broker:
    """A mosquitto and its clients, each as one program that can be run.

    Attributes:
        mosquitto: The broker.
        publish: `mosquitto_pub`.
        subscribe: `mosquitto_sub`.
        request: `mosquitto_rr`, which publishes and waits for the response.
        passwd: `mosquitto_passwd`, which makes password files.
        origin: Whether they were found on this machine or provisioned.
    """

    mosquitto: Path
    publish: Path
    subscribe: Path
    request: Path
    passwd: Path
    origin: Literal["path", "provisioned"]

    @property
    def programs(self) -> tuple[Path, ...]:
        """All of them."""
        return self.mosquitto, self.publish, self.subscribe, self.request, self.passwd


def find_broker(*, refresh: bool = False, reporter: Reporter | None = None) -> Broker:
    """Return a mosquitto: that of this machine, that of the cache, or one from Debian.

    Args:
        refresh: Download the newest, whatever the machine and the cache have.
        reporter: Shows what takes time.

    Raises:
        OperatorError: There is none, and none could be downloaded.
    """
    found = None if refresh else _installed()
    if found is not None:
        return found
    tree = provision(_TREE, _packages, BROKER, reporter or ConsoleReporter(), refresh=refresh)
    return _provisioned(tree)


def cached_broker() -> Broker | None:
    """Return what is here already, installed or in the cache; downloads nothing."""
    tree = cached_tree(_TREE)
    return _installed() or (_provisioned(tree) if tree else None)


def _installed() -> Broker | None:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES))
    found = [shutil.which(name, path=path) for name in (BROKER, *CLIENTS)]
    programs = [Path(each) for each in found if each is not None]
    return _broker(programs, "path") if len(programs) == len(found) else None


def _packages(apt: PrivateApt) -> Sequence[Package]:
    return apt.closure(["mosquitto", "mosquitto-clients"], suite=RELEASE)


def _provisioned(tree: Tree) -> Broker:
    programs = (f"usr/sbin/{BROKER}", *(f"usr/bin/{name}" for name in CLIENTS))
    return _broker([_wrapper(tree, each) for each in programs], "provisioned")


def _broker(programs: Sequence[Path], origin: Literal["path", "provisioned"]) -> Broker:
    mosquitto, publish, subscribe, request, passwd = programs
    return Broker(mosquitto, publish, subscribe, request, passwd, origin)


def _wrapper(tree: Tree, program: str) -> Path:
    """Return a script that runs an unpacked program with the C library it was built for."""
    wrapper = tree.root.parent / "bin" / Path(program).name
    if not wrapper.exists():
        libraries = tree.root / _LIBRARIES
        words: list[str | Path] = [
            libraries / "ld-linux-x86-64.so.2",
            *("--argv0", wrapper.name, "--library-path", libraries, tree.root / program),
        ]
        command = " ".join(shlex.quote(os.fspath(word)) for word in words)
        write_whole(wrapper, f'#!/bin/sh\nexec {command} "$@"\n'.encode(), mode=0o755)
    return wrapper

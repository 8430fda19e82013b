from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ballast_images import broker as broker_module
from ballast_images.broker import BROKER, CLIENTS, cached_broker, find_broker
from ballast_images.progress import SilentReporter
from ballast_images.provision import Tree


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and a machine without mosquitto."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(broker_module, "_SYSTEM_DIRECTORIES", ())


def install(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)


def test_this_machines_is_used(tmp_path: Path) -> None:
    install(tmp_path / "bin", BROKER, *CLIENTS)
    found = find_broker()
    assert (found.mosquitto, found.origin) == (tmp_path / "bin" / BROKER, "path")
    assert found == cached_broker()


def test_one_outside_of_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbin").mkdir()
    monkeypatch.setattr(broker_module, "_SYSTEM_DIRECTORIES", (str(tmp_path / "sbin"),))
    install(tmp_path / "bin", *CLIENTS)
    install(tmp_path / "sbin", BROKER)
    assert find_broker().mosquitto == tmp_path / "sbin" / BROKER


def test_a_broker_without_its_clients_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stands in: it shows that the wrapper passes on every word as it is."""
    install(tmp_path / "bin", BROKER)
    assert cached_broker() is None
    root = tmp_path / "a cache" / "root"
    loader = root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    loader.chmod(0o755)
    monkeypatch.setattr(broker_module, "provision", lambda *args, **options: Tree(root, "digest"))
    found = find_broker(reporter=SilentReporter())
    assert found.origin == "provisioned"
    said = subprocess.run(
        [found.subscribe, "-t", "a b"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[-3:] == [str(root / "usr/bin/mosquitto_sub"), "-t", "a b"]

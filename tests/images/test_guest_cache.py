from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ballast_images.guest import (
    GUEST_VARIABLE,
    IMAGES_KEPT,
    IN_USE_SECONDS,
    GuestImage,
    _prune,
    build_guest,
    export_guest,
)
from ballast_protocol.errors import OperatorError


def make_images(directory: Path, ages_seconds: list[float], now: float) -> list[Path]:
    paths = []
    for number, age in enumerate(ages_seconds):
        path = directory / f"trixie-{number:016x}"
        path.mkdir()
        os.utime(path, (now - age, now - age))
        paths.append(path)
    return paths


def test_only_images_that_nobody_has_used_lately_are_removed(tmp_path: Path) -> None:
    now = time.time()
    recent = [float(number) for number in range(IMAGES_KEPT + 2)]
    paths = make_images(tmp_path, [*recent, IN_USE_SECONDS + 60], now)
    _prune(tmp_path, "trixie", now)
    assert [path.exists() for path in paths] == [True] * len(recent) + [False]


def test_the_newest_images_stay_however_old_they_are(tmp_path: Path) -> None:
    now = time.time()
    ages = [IN_USE_SECONDS * (number + 2) for number in range(IMAGES_KEPT + 1)]
    paths = make_images(tmp_path, ages, now)
    _prune(tmp_path, "trixie", now)
    assert [path.exists() for path in paths] == [True] * IMAGES_KEPT + [False]


def test_a_guest_goes_where_none_can_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    there = tmp_path / "there"
    export_guest(GuestImage(kernel, initrd, "6.12"), there)
    monkeypatch.setenv(GUEST_VARIABLE, str(there))
    found = build_guest()
    assert found.kernel_release == "6.12"
    assert found.kernel.read_bytes() == b"kernel"
    assert found.initrd.read_bytes() == b"initrd"


def test_a_place_without_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GUEST_VARIABLE, str(tmp_path))
    with pytest.raises(OperatorError, match="holds no guest") as caught:
        build_guest()
    assert "ballast image guest" in caught.value.hint
    with pytest.raises(OperatorError, match="cannot write a guest"):
        export_guest(GuestImage(tmp_path / "k", tmp_path / "i", "6.12"), tmp_path / "x")

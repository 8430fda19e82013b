from __future__ import annotations

import os
import time
from pathlib import Path

from ballast_images.guest import IMAGES_KEPT, IN_USE_SECONDS, _prune


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

"""Where provisioned files live, and how several processes fill the same cache without harm.

Everything is made in a directory of its own beside its final place and renamed into it, so a cache
holds only whole things however a process ends. `BALLAST_CACHE` overrides the place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from ballast_images.progress import Reporter
from ballast_protocol.errors import OperatorError

CACHE_VARIABLE = "BALLAST_CACHE"
"""The environment variable that moves the cache."""

_DRAFTS = ".draft-*"


def cache_dir() -> Path:
    """Return the directory of everything that can be provisioned again, made if it is missing.

    Raises:
        OperatorError: The directory cannot be made.
    """
    override = os.environ.get(CACHE_VARIABLE)
    path = Path(override).absolute() if override else user_cache_path("ballast")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            f"cannot make the cache directory {path}: {error.strerror}",
            hint=f"Set {CACHE_VARIABLE} to a directory that you can write to.",
        ) from error
    return path


@contextmanager
def locked(reporter: Reporter) -> Iterator[Path]:
    """Hold the cache's one lock; wait, and say so, while another process fills the cache.

    The lock goes with the process, so one that dies does not leave it behind.
    """
    path = cache_dir()
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with reporter.step("Waiting for another process that is filling the cache"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        # Drafts are made under this lock: those that are here now were left by a killed process.
        for draft in [*path.glob(_DRAFTS), *path.glob(f"*/{_DRAFTS}")]:
            shutil.rmtree(draft, ignore_errors=True)
        yield path


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield an empty directory in `parent`, made if missing, that is gone after the block.

    To be used with the cache locked.
    """
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=_DRAFTS.rstrip("*"), dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` if, and only if, the block ends well.

    To be used with the cache locked. An old `target` is replaced.
    """
    with scratch(target.parent) as draft:
        yield draft
        draft.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path` so that a reader sees the old contents or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        draft.chmod(mode)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)

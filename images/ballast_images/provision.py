"""Trees of unpacked Debian packages in the cache, each with a lock file that says what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballast_images.apt import Package, PrivateApt
from ballast_images.cache import cache_dir, locked, published, scratch, write_whole
from ballast_images.progress import Reporter

Resolve = Callable[[PrivateApt], Sequence[Package]]
"""Chooses the packages of a tree; asked only when the tree is new or refreshed."""


@dataclass(frozen=True)
class Tree:
    """Unpacked packages.

    Attributes:
        root: The directory that they were unpacked into.
        digest: SHA-256 over the digests of all packages: the same digest, the same files.
    """

    root: Path
    digest: str


def cached_tree(name: str) -> Tree | None:
    """Return the tree called `name` if it is in the cache. Touches neither network nor lock."""
    try:
        packages = json.loads(_lock_path(name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    tree = _tree(name, packages)
    return tree if tree.root.is_dir() else None


def provision(
    name: str, resolve: Resolve, what: str, reporter: Reporter, *, refresh: bool = False
) -> Tree:
    """Return the tree called `name`; resolve, download and unpack it if the cache has none.

    Args:
        name: Its name in the cache.
        resolve: Chooses the packages.
        what: What people call it, for the progress display.
        reporter: Shows what takes time.
        refresh: Choose anew even if the cache has a tree, from package lists fetched now.

    Raises:
        OperatorError: apt is missing or fails.
    """
    tree = None if refresh else cached_tree(name)
    if tree is not None:
        return tree
    with locked(reporter) as cache:
        # Another process may have made it while this one waited.
        tree = None if refresh else cached_tree(name)
        return tree or _make(name, resolve, what, PrivateApt(cache / "apt", reporter), refresh)


def _make(name: str, resolve: Resolve, what: str, apt: PrivateApt, refresh: bool) -> Tree:
    apt.update(refresh=refresh)
    packages = resolve(apt)
    with scratch(cache_dir() / "trees") as draft:
        digests = apt.unpack(packages, draft / "root", what)
        tree = _tree(name, digests)
        # The same packages again: leave the files alone, something may be running from them.
        if not tree.root.is_dir():
            with published(tree.root.parent) as directory:
                (draft / "root").rename(directory / "root")
    write_whole(_lock_path(name), json.dumps(digests, indent=1, sort_keys=True).encode())
    return tree


def _tree(name: str, packages: dict[str, str]) -> Tree:
    canonical = json.dumps(packages, sort_keys=True).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    return Tree(cache_dir() / "trees" / f"{name}-{digest[:16]}" / "root", digest)


def _lock_path(name: str) -> Path:
    return cache_dir() / f"{name}.lock.json"

"""Writing initramfs archives: "newc" cpio (Linux, driver-api/early-userspace/buffer-format).

The same entries give the same bytes: nothing of the file system that they came from, no clock and
no user gets in.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4


@dataclass(frozen=True)
class Entry:
    """A file, directory or symbolic link.

    Attributes:
        path: Where, relative to the root, without a leading slash.
        mode: Type and permissions as in `st_mode`.
        data: A file's contents or a link's target.
    """

    path: str
    mode: int
    data: bytes = b""

    @classmethod
    def directory(cls, path: str) -> Entry:
        """Return a directory that everybody may enter."""
        return cls(path, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, path: str, data: bytes, *, is_executable: bool = False) -> Entry:
        """Return a file that everybody may read."""
        return cls(path, stat.S_IFREG | (0o755 if is_executable else 0o644), data)

    @classmethod
    def link(cls, path: str, target: str) -> Entry:
        """Return a symbolic link."""
        return cls(path, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """Return an archive of `entries` and of all directories above them, sorted by path.

    Where two entries have the same path the later one counts.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        for parent in _parents(entry.path):
            by_path.setdefault(parent, Entry.directory(parent))
        by_path[entry.path] = entry
    out = bytearray()
    for inode, path in enumerate(sorted(by_path), start=1):
        _append(out, by_path[path], inode)
    _append(out, Entry(_TRAILER, 0), 0)
    return bytes(out)


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    _pad(out)
    out += entry.data
    _pad(out)


def _pad(out: bytearray) -> None:
    out += bytes(-len(out) % _ALIGNMENT)

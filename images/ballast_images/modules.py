"""Choosing kernel modules for a guest, with what they need, and saying so to `modprobe`."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from ballast_images.cpio import Entry
from ballast_protocol.errors import OperatorError

_DEPENDS = b"depends="


class ModuleTree:
    """The modules of one kernel, as its package ships them.

    Args:
        directory: `.../lib/modules/RELEASE`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.release = directory.name
        self._paths = {_name(path): path for path in sorted((directory / "kernel").rglob("*.ko*"))}
        builtin = directory / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {_name(Path(line)) for line in lines}
        self._contents: dict[str, bytes] = {}

    def entries(self, wanted: Iterable[str]) -> Iterator[Entry]:
        """Yield `wanted`, all that they need, and a `modules.dep`, as `modprobe` expects them.

        Modules are stored unpacked: the guest then needs no decompressor for them.

        Raises:
            OperatorError: The kernel has no such module, neither as a file nor built in.
        """
        closure = dict.fromkeys(name for top in wanted for name in self._with_dependencies(top))
        base = f"usr/lib/modules/{self.release}"
        lines = []
        for name in sorted(closure):
            yield Entry.file(f"{base}/{self._target(name)}", self._content(name))
            needed = list(self._with_dependencies(name))[1:]
            lines.append(f"{self._target(name)}:{''.join(f' {self._target(n)}' for n in needed)}\n")
        yield Entry.file(f"{base}/modules.dep", "".join(lines).encode())

    def _with_dependencies(self, name: str) -> Iterator[str]:
        """Yield `name` and below it, in the order of modules.dep, what it needs."""
        pending = [name.replace("-", "_")]
        seen: set[str] = set()
        while pending:
            module = pending.pop(0)
            if module in seen or module in self._builtin:
                continue
            if module not in self._paths:
                raise OperatorError(f"kernel {self.release} has no module {module}")
            seen.add(module)
            yield module
            pending += _dependencies(self._content(module))

    def _content(self, name: str) -> bytes:
        if name not in self._contents:
            path = self._paths[name]
            data = path.read_bytes()
            self._contents[name] = lzma.decompress(data) if path.suffix == ".xz" else data
        return self._contents[name]

    def _target(self, name: str) -> str:
        path = self._paths[name].relative_to(self._directory)
        return str(path.with_suffix("") if path.suffix == ".xz" else path)


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    """Return the names in a module's `depends=` note (its .modinfo section, NUL-separated)."""
    for field in module.split(b"\0"):
        if field.startswith(_DEPENDS):
            names = field.removeprefix(_DEPENDS).decode()
            return [name.replace("-", "_") for name in names.split(",") if name]
    return []

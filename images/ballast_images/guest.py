"""Building the guest: a stock Debian cloud kernel, and an initramfs with Python and our agent.

The same packages and the same files of ours give the same image, byte for byte, so an image is
named after a digest of what went into it and is built once.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ballast_images import cpio, zipapp
from ballast_images.apt import RELEASE, Package, PrivateApt
from ballast_images.cache import cache_dir, locked, published, scratch
from ballast_images.cpio import Entry
from ballast_images.modules import ModuleTree
from ballast_images.progress import ConsoleReporter, Reporter
from ballast_images.provision import Tree, provision
from ballast_protocol.errors import OperatorError

Suite = Literal["trixie", "trixie-backports"]

GUEST_VARIABLE = "BALLAST_GUEST"
"""Names a directory with a guest that `export_guest` has written: for where none can be built."""

Files = Mapping[str, bytes]
"""Contents by path: read once, so that what is digested is what is built."""

MODULES = (
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "virtio_mem",
    "virtio_blk",
    "virtio_net",
    "zram",
)
"""Kernel modules in the guest; the guest's init loads those that a balloon is tried with."""

KERNEL_ARGUMENTS = ("console=ttyS0", "quiet", "panic=-1")
"""What the guest's kernel is always told."""

IMAGES_KEPT = 4
"""How many images of one suite stay in the cache, besides those in use."""

IN_USE_SECONDS = 86_400.0
"""An image that a checkout has asked for within so much time is not removed by another one's."""

_KERNEL = "linux-image-cloud-amd64"
_KERNEL_PART = re.compile(r"linux-(image|binary|modules)-\d.*")
_PYTHON = "python3.13"
_USERLAND = (
    *("busybox-static", f"{_PYTHON}-minimal", f"lib{_PYTHON}-minimal", f"lib{_PYTHON}-stdlib"),
    *("libc6", "libexpat1", "libffi8", "libgcc-s1", "zlib1g"),
)
_LIBRARY_DIR = "usr/lib/x86_64-linux-gnu"
_LIBRARIES = (
    *("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6"),
    *("libexpat.so.1", "libffi.so.8", "libgcc_s.so.1", "libz.so.1"),
)
_STDLIB_LEFT_OUT = frozenset(
    (
        *("test", "unittest", "idlelib", "tkinter", "turtledemo", "turtle.py", "curses", "_pyrepl"),
        *("ensurepip", "venv", "pydoc_data", "pydoc.py", "doctest.py", "pdb.py", "pickletools.py"),
        *("wsgiref", "xmlrpc", "xml", "email", "http", "html", "urllib", "mailbox.py"),
        *("dbm", "sqlite3", "_pydecimal.py", "sitecustomize.py", "__phello__"),
    )
)
_ENCODINGS = frozenset(
    ["__init__.py", "aliases.py", "ascii.py", "cp437.py", "idna.py", "latin_1.py", "utf_8.py"]
)
_EXTENSIONS_LEFT_OUT = re.compile(
    r"_(test|xxtest|codecs_|multibytecodec|ssl|sqlite3|curses|dbm|bz2|lzma|hashlib)|xx|readline"
)
_OWN = Path(__file__).parent


@dataclass(frozen=True)
class GuestImage:
    """A guest that can be booted.

    Attributes:
        kernel: The kernel, for QEMU's `-kernel`.
        initrd: The initramfs, for `-initrd`.
        kernel_release: What `uname -r` says in the guest.
    """

    kernel: Path
    initrd: Path
    kernel_release: str


def build_guest(
    *, suite: Suite = "trixie", refresh: bool = False, reporter: Reporter | None = None
) -> GuestImage:
    """Return the guest image, building it if the cache has none like it.

    Needs the network only for the first image of a suite, or to `refresh` it. Where
    `BALLAST_GUEST` names a directory, the image is the one in there, whatever the suite.

    Args:
        suite: Where the kernel comes from: Debian 13, or its backports, which has a newer one.
        refresh: Look for newer packages.
        reporter: Shows what takes time.

    Raises:
        OperatorError: The packages cannot be had.
    """
    if exported := os.environ.get(GUEST_VARIABLE):
        return _exported(Path(exported))
    shown = reporter or ConsoleReporter()
    tree = provision(
        f"guest-{suite}",
        lambda apt: _packages(apt, suite),
        f"the guest's packages ({suite})",
        shown,
        refresh=refresh,
    )
    own, agent = _own_files(), zipapp.agent_sources()
    directory = cache_dir() / "images" / f"{suite}-{_digest(tree, {**own, **agent})[:16]}"
    if not directory.is_dir():
        with locked(shown):
            # Another process may have built it while this one waited.
            if not directory.is_dir():
                with shown.step("Building the guest image"), published(directory) as draft:
                    _build(tree, own, agent, draft)
                _prune(directory.parent, suite, time.time())
    os.utime(directory)
    return GuestImage(directory / "vmlinuz", directory / "initrd", _modules(tree).name)


def export_guest(image: GuestImage, directory: Path) -> None:
    """Write a guest into a directory that needs no cache, for `BALLAST_GUEST`.

    Raises:
        OperatorError: It cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image.kernel, directory / "vmlinuz")
        shutil.copyfile(image.initrd, directory / "initrd")
        (directory / "release").write_text(f"{image.kernel_release}\n")
    except OSError as error:
        raise OperatorError(f"cannot write a guest to {directory}: {error.strerror}") from error


def _exported(directory: Path) -> GuestImage:
    try:
        release = (directory / "release").read_text().strip()
    except OSError as error:
        raise OperatorError(
            f"{GUEST_VARIABLE} names {directory}, which holds no guest: {error.strerror}",
            hint="Write one with `ballast image guest DIRECTORY`, or unset the variable.",
        ) from error
    return GuestImage(directory / "vmlinuz", directory / "initrd", release)


def _prune(images: Path, suite: Suite, now: float) -> None:
    """Remove the images of a suite that nobody has used lately: every change makes another.

    Args:
        images: Where they are.
        suite: Which.
        now: In seconds since 1970.
    """
    own = [path for path in images.iterdir() if re.fullmatch(f"{suite}-[0-9a-f]{{16}}", path.name)]
    own.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in own[IMAGES_KEPT:]:
        if now - path.stat().st_mtime > IN_USE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _packages(apt: PrivateApt, suite: Suite) -> Sequence[Package]:
    packages = list(apt.exactly(_USERLAND, suite=RELEASE))
    pending = [_KERNEL]
    while pending:
        (package,) = apt.exactly([pending.pop()], suite=suite)
        packages.append(package)
        pending += [name for name in apt.dependencies(package) if _KERNEL_PART.fullmatch(name)]
    return packages


def _digest(tree: Tree, files: Files) -> str:
    digest = hashlib.sha256(tree.digest.encode())
    for path, data in sorted(files.items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _own_files() -> Files:
    """Return what of this package decides how an image looks."""
    names = ["guest.py", "cpio.py", "modules.py", "zipapp.py"]
    names += [f"guest_files/{name}" for name in ("init", "shell.py", "memtool.py")]
    return {name: (_OWN / name).read_bytes() for name in names}


def _build(tree: Tree, own: Files, agent: Files, directory: Path) -> None:
    shutil.copyfile(_kernel(tree), directory / "vmlinuz")
    with scratch(cache_dir()) as workplace:
        _compile_stdlib(tree.root, workplace)
        entries = [
            *_skeleton(),
            *_userland(tree.root),
            *_stdlib(tree.root, workplace),
            *ModuleTree(_modules(tree)).entries(MODULES),
            *_own_entries(own, agent),
        ]
    packed = gzip.compress(cpio.archive(entries), compresslevel=1, mtime=0)
    (directory / "initrd").write_bytes(packed)


def _modules(tree: Tree) -> Path:
    found = list(tree.root.glob("usr/lib/modules/*/kernel"))
    if len(found) != 1:
        raise OperatorError(f"Debian's kernel packages hold {len(found)} kernels instead of one")
    return found[0].parent


def _kernel(tree: Tree) -> Path:
    modules = _modules(tree)
    # Newer packages keep the kernel beside its modules.
    beside = modules / "vmlinuz"
    return beside if beside.exists() else tree.root / "boot" / f"vmlinuz-{modules.name}"


def _skeleton() -> Iterator[Entry]:
    for path in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/lib64", "var/log"):
        yield Entry.directory(path)
    for path, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib")):
        yield Entry.link(path, target)
    yield Entry.link("lib64", "usr/lib64")
    yield Entry.link("usr/lib64/ld-linux-x86-64.so.2", f"/{_LIBRARY_DIR}/ld-linux-x86-64.so.2")


def _userland(root: Path) -> Iterator[Entry]:
    for program in ("busybox", _PYTHON):
        yield Entry.file(
            f"usr/bin/{program}", (root / "usr/bin" / program).read_bytes(), is_executable=True
        )
    yield Entry.link("usr/bin/python3", _PYTHON)
    for name in _LIBRARIES:
        path = f"{_LIBRARY_DIR}/{name}"
        yield Entry.file(path, (root / path).read_bytes(), is_executable=True)


def _own_entries(own: Files, agent: Files) -> Iterator[Entry]:
    yield Entry.file("init", own["guest_files/init"], is_executable=True)
    yield Entry.file("usr/lib/ballast/shell.py", own["guest_files/shell.py"])
    memtool = b"#!/usr/bin/python3\n" + own["guest_files/memtool.py"]
    yield Entry.file("usr/bin/memtool", memtool, is_executable=True)
    if program := zipapp.agent_archive(agent):
        yield Entry.file("usr/bin/ballast-agent.pyz", program, is_executable=True)


def _stdlib_sources(root: Path) -> Iterator[Path]:
    """Yield the modules of the standard library that the guest gets."""
    library = root / "usr/lib" / _PYTHON
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if _STDLIB_LEFT_OUT.isdisjoint(parts) and (
            parts[0] != "encodings" or parts[-1] in _ENCODINGS
        ):
            yield path


def _stdlib(root: Path, compiled: Path) -> Iterator[Entry]:
    """Yield the standard library, compiled: an emulated guest takes seconds to do that itself."""
    for source in _stdlib_sources(root):
        path = source.relative_to(root).with_suffix(".pyc")
        yield Entry.file(os.fspath(path), (compiled / path).read_bytes())
    for extension in sorted((root / "usr/lib" / _PYTHON / "lib-dynload").iterdir()):
        if not _EXTENSIONS_LEFT_OUT.match(extension.name):
            yield Entry.file(os.fspath(extension.relative_to(root)), extension.read_bytes())


_COMPILE = """
import py_compile, sys
for line in sys.stdin:
    source, target, shown = line.rstrip("\\n").split("\\t")
    py_compile.compile(source, target, shown, doraise=True,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def _compile_stdlib(root: Path, target: Path) -> None:
    """Compile the standard library below `target`, with the guest's own Python, run on the host."""
    lines = []
    for source in _stdlib_sources(root):
        path = source.relative_to(root)
        lines.append(f"{source}\t{target / path.with_suffix('.pyc')}\t/{path}\n")
    libraries = root / _LIBRARY_DIR
    subprocess.run(
        [
            *(libraries / "ld-linux-x86-64.so.2", "--library-path", libraries),
            *(root / "usr/bin" / _PYTHON, "-S", "-B", "-c", _COMPILE),
        ],
        input="".join(lines),
        text=True,
        check=True,
        env={"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )

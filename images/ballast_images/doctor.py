"""Looking whether this machine can run Ballast, and what to do where it cannot."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ballast_images.accelerator import KVM_DEVICE, accelerator
from ballast_images.apt import find_keyring, find_mirror
from ballast_images.cache import CACHE_VARIABLE, cache_dir
from ballast_images.qemu import INSTALL_HINT, REQUIRED_DEVICES, Qemu, find_qemu
from ballast_protocol.errors import OperatorError

Verdict = Literal["ok", "warn", "fail"]

PROBE_BYTES = 4 << 20
"""How much shared memory is made, written and given back for the proof that this works."""

CACHE_BYTES_NEEDED = 1 << 30
"""What QEMU and two guests take in the cache, with room to build them."""

MEMORY_BYTES_NEEDED = 3 << 30
"""What the demo's guest of 2 GiB takes at most, with QEMU."""

FILES_NEEDED = 1024
"""Open files that a worker with a few dozen VMs needs: about twenty each."""

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        verdict: `ok`; `warn` if Ballast works with less speed or comfort; `fail` if it does not.
        detail: What was found.
        cure: What to do about it; empty if nothing.
    """

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


def probes(qemu: Path | None = None, *, runtime_dir: Path | None = None) -> Iterator[Check]:
    """Look at the machine and yield what is found, one check at a time. Downloads nothing.

    Args:
        qemu: The QEMU that the operator wants to use; by default the one that would be found.
        runtime_dir: Where sockets are to go; by default the user's runtime directory.
    """
    found = None
    try:
        found = find_qemu(qemu, should_provision=False)
        yield _devices(found)
    except OperatorError as error:
        yield _no_qemu(error, qemu)
    if found is not None:
        yield _acceleration(found)
    for probe in _PROBES:
        yield probe()
    yield _runtime(runtime_dir or _default_runtime_dir())


def _devices(qemu: Qemu) -> Check:
    origin = {"explicit": "as asked for", "path": "on PATH", "provisioned": "provisioned"}
    detail = f"{qemu.version}, {origin[qemu.origin]}, with {' and '.join(REQUIRED_DEVICES)}"
    return Check("QEMU", "ok", detail)


def _no_qemu(error: OperatorError, wanted: Path | None) -> Check:
    if wanted is None and _package_source().verdict == "ok":
        cure = "Nothing to do: it is downloaded when it is first needed (`ballast image build`)."
        return Check("QEMU", "warn", "none with Ballast's devices yet", cure)
    return Check("QEMU", "fail", str(error), error.hint or INSTALL_HINT)


def _acceleration(qemu: Qemu) -> Check:
    best = accelerator(qemu)
    if best.name == "kvm":
        return Check("acceleration", "ok", best.reason)
    if KVM_DEVICE.exists() and not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        cure = f"Join the group that owns {KVM_DEVICE}: `sudo usermod -aG kvm $USER`, log in again."
    else:
        cure = "Guests are emulated (TCG): slower, otherwise the same. Use a host that offers KVM."
    return Check("acceleration", "warn", best.reason, cure)


def _shared_memory() -> Check:
    name = "shared memory"
    try:
        kept, left = _punch()
    except OSError as error:
        cure = "Allow memfd_create and fallocate (seccomp profile, `sysctl vm.memfd_noexec=1`)."
        return Check(name, "fail", f"memfd does not work here: {error.strerror}", cure)
    if left * 2 > kept:
        cure = "Use a kernel that frees holes in memfds; none of Ballast's effects is visible here."
        return Check(name, "fail", "a hole punched into a memfd stays resident", cure)
    return Check(name, "ok", f"memfd gives back what is punched out ({kept} to {left} bytes)")


def _punch() -> tuple[int, int]:
    """Return how many bytes of a memfd are resident before and after three quarters are punched."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.memfd_create("ballast-doctor", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, PROBE_BYTES)
        os.pwrite(fd, b"\1" * PROBE_BYTES, 0)
        kept = os.fstat(fd).st_blocks * 512
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        size = ctypes.c_int64(PROBE_BYTES // 4 * 3)
        if libc.fallocate64(fd, mode, ctypes.c_int64(0), size):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return kept, os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def _memory() -> Check:
    available = _available_bytes()
    detail = f"{available / _GIB:.1f} GiB available"
    if available < MEMORY_BYTES_NEEDED:
        cure = "Use smaller guests (`--memory`), or raise the container's memory limit."
        return Check("memory", "warn", detail, cure)
    return Check("memory", "ok", detail)


def _available_bytes() -> int:
    """Return MemAvailable, or what this cgroup may still use if that is less."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _cgroup_number(name: str) -> int | None:
    """Return a number of this process' cgroup (v2); None if there is none or it is `max`."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        text = (Path("/sys/fs/cgroup") / own.lstrip("/") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _shm_size() -> Check:
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("/dev/shm", "ok", "none; guests whose RAM is a memfd do not need it")
    detail = f"{size / _GIB:.1f} GiB"
    if size < 2 * _GIB:
        cure = "Only for guests with RAM in files there: give the container a larger --shm-size."
        return Check("/dev/shm", "warn", detail, cure)
    return Check("/dev/shm", "ok", detail)


def _file_limits() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest != resource.RLIM_INFINITY:
        cure = "A memfd counts as a file: set `ulimit -f unlimited`."
        return Check("file limits", "fail", f"files may have {largest} bytes at most", cure)
    if soft != resource.RLIM_INFINITY and soft < FILES_NEEDED:
        cure = f"Raise it with `ulimit -n {FILES_NEEDED}` (hard limit: {hard})."
        return Check("file limits", "warn", f"{soft} open files", cure)
    return Check("file limits", "ok", f"{soft} open files")


def _cache() -> Check:
    try:
        path = cache_dir()
    except OperatorError as error:
        return Check("cache", "fail", str(error), error.hint)
    if not os.access(path, os.W_OK | os.X_OK):
        cure = f"Set {CACHE_VARIABLE} to a directory that you can write to."
        return Check("cache", "fail", f"{path} is not writable", cure)
    free = shutil.disk_usage(path).free
    detail = f"{path}, {free / _GIB:.1f} GiB free"
    if free < CACHE_BYTES_NEEDED:
        cure = (
            f"Free {CACHE_BYTES_NEEDED / _GIB:.0f} GiB, or set {CACHE_VARIABLE} to a larger disk."
        )
        return Check("cache", "warn", detail, cure)
    return Check("cache", "ok", detail)


def _package_source() -> Check:
    try:
        mirror, keyring = find_mirror(), find_keyring()
    except OperatorError as error:
        return Check("package source", "warn", str(error), error.hint)
    return Check("package source", "ok", f"{mirror}, verified with {keyring}")


def _default_runtime_dir() -> Path:
    base = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(base) / "ballast" if base else Path(f"/run/user/{os.geteuid()}/ballast")


def _runtime(path: Path) -> Check:
    """Check the first directory that exists: what is below it would be made."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("runtime directory", "ok", str(path))
    cure = "Set XDG_RUNTIME_DIR to a directory of your own with a short path, mode 0700."
    return Check("runtime directory", "fail", f"{path} cannot be made", cure)


_PROBES: tuple[Callable[[], Check], ...] = (
    _shared_memory,
    _memory,
    _shm_size,
    _file_limits,
    _cache,
    _package_source,
)

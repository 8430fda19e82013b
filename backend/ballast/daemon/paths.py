"""A VM's runtime directory: where its sockets are, and who may serve it.

The directory is `/run/ballast/NAME` for root and `$XDG_RUNTIME_DIR/ballast/NAME` for others. A lock
file in it makes sure that one process at a time serves a name; the lock goes with the process, so a
crash leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ballast_protocol.errors import OperatorError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def runtime_root() -> Path:
    """Return the directory that holds one directory for each VM."""
    override = os.environ.get("BALLAST_RUNTIME_DIR")
    if override:
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/ballast")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "ballast"
    return Path(tempfile.gettempdir()) / f"ballast-{os.geteuid()}"


def check_name(name: str) -> str:
    """Return a VM's name if it can be one.

    Raises:
        OperatorError: It would not make a good file name.
    """
    if not _NAME.fullmatch(name):
        raise OperatorError(
            f"{name!r} cannot be a VM's name",
            hint="Use up to 64 letters, digits, '.', '_' or '-', the first a letter or digit.",
        )
    return name


class VmPaths:
    """The files of one VM.

    Attributes:
        name: The VM's name.
        directory: Where they are.
    """

    def __init__(self, name: str, root: Path | None = None) -> None:
        """Name the files; nothing is created.

        Raises:
            OperatorError: The name cannot be one.
        """
        self.name = check_name(name)
        self.directory = (root or runtime_root()) / name

    @property
    def vhost_user(self) -> Path:
        """Where QEMU finds the device."""
        return self.directory / "vhost-user.sock"

    @property
    def vfio_user(self) -> Path:
        """Where QEMU finds the device as a whole PCI function."""
        return self.directory / "vfio-user.sock"

    def device(self, transport: str) -> Path:
        """Return where QEMU finds the device, by the transport's name."""
        return self.vfio_user if transport == "vfio-user" else self.vhost_user

    @property
    def control(self) -> Path:
        """A second QMP monitor of QEMU, for `ballast launch` itself."""
        return self.directory / "control.sock"

    @property
    def qmp(self) -> Path:
        """Where operators find the balloon's QMP."""
        return self.directory / "qmp.sock"

    @property
    def monitor(self) -> Path:
        """A QMP monitor of QEMU for the VM's own QMP socket, which shares it among its clients."""
        return self.directory / "monitor.sock"

    @property
    def agent(self) -> Path:
        """Where QEMU connects the guest agent's port."""
        return self.directory / "agent.sock"

    @property
    def qemu_qmp(self) -> Path:
        """Where QEMU's own QMP is, for VMs that `ballast launch` started."""
        return self.directory / "qemu-qmp.sock"

    @property
    def shell(self) -> Path:
        """Where our own guest runs commands, if `ballast launch --keeper` started it."""
        return self.directory / "shell.sock"

    @property
    def lock(self) -> Path:
        """The file that the serving process holds locked."""
        return self.directory / "lock"


def served_names(root: Path | None = None) -> Iterator[str]:
    """Yield the names of VMs that have a runtime directory with a QMP socket, sorted."""
    try:
        entries = sorted((root or runtime_root()).iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        if (entry / "qmp.sock").is_socket():
            yield entry.name


def _check_owner(directory: Path) -> None:
    """Refuse a directory of somebody else, who could put sockets of his own into it.

    Raises:
        OperatorError: It is neither ours nor root's.
    """
    if directory.stat().st_uid not in (0, os.geteuid()):
        raise OperatorError(
            f"{directory} belongs to another user",
            hint="Set XDG_RUNTIME_DIR or BALLAST_RUNTIME_DIR to a directory of yours.",
        )


class NameLock:
    """The right to serve a VM's name, held as long as the process lives or until `release`."""

    def __init__(self, paths: VmPaths, fd: int | None = None) -> None:
        """Make the runtime directory and take the lock.

        Args:
            paths: The VM's files.
            fd: The lock that a predecessor took, which holds as long as anybody has it open.

        Raises:
            OperatorError: Another process serves this name, or the directory cannot be made.
        """
        self._paths = paths
        if fd is not None:
            self._fd = fd
            return
        self._take()
        while not self._is_current():
            os.close(self._fd)
            self._take()
        self.name_holder(os.getpid())

    def fileno(self) -> int:
        """Return what holds the lock."""
        return self._fd

    def name_holder(self, pid: int) -> None:
        """Write down which process is to be stopped to free the name."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{pid}\n".encode(), 0)

    def _take(self) -> None:
        paths = self._paths
        try:
            paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(paths.directory)
            _check_owner(paths.directory.parent)
            self._fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(
                f"cannot use the runtime directory {paths.directory}: {error.strerror}",
                hint="Set XDG_RUNTIME_DIR or BALLAST_RUNTIME_DIR to a directory of yours.",
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise OperatorError(
                f"VM {paths.name!r} is already served by process {holder or 'unknown'}",
                hint="Choose another name, or stop that process first.",
            ) from None

    def _is_current(self) -> bool:
        """Whether the file that is locked is still there: its last holder removes it."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._paths.lock))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the name up and remove what is left of the directory if it is empty."""
        self._paths.lock.unlink(missing_ok=True)
        os.close(self._fd)
        try:
            self._paths.directory.rmdir()
        except OSError:
            return

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ballast.daemon.paths import NameLock, VmPaths, check_name, runtime_root, served_names
from ballast_protocol.errors import OperatorError
from support.fds import none_left_open

HOLDER = """
import sys
from pathlib import Path
from ballast.daemon.paths import NameLock, VmPaths
lock = NameLock(VmPaths("vm", Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["a", "vm-1", "A.b_c", "0", "x" * 64])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "a\n", "x" * 65, "é"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(OperatorError, match="cannot be a VM's name") as caught:
        check_name(name)
    assert caught.value.hint


def test_where_it_all_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", "/somewhere")
    assert runtime_root() == Path("/somewhere")
    monkeypatch.delenv("BALLAST_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime_root() == Path("/run/user/1000/ballast")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_root().name == "ballast-1000"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_root() == Path("/run/ballast")


def test_the_files_of_a_vm(tmp_path: Path) -> None:
    paths = VmPaths("vm", tmp_path)
    files = [paths.vhost_user, paths.qmp, paths.agent, paths.qemu_qmp, paths.lock]
    assert {file.parent for file in files} == {tmp_path / "vm"}
    assert len(set(files)) == len(files)


def test_served_names_have_a_socket(tmp_path: Path) -> None:
    assert list(served_names(tmp_path / "missing")) == []
    for name in ("b", "a", "dead"):
        (tmp_path / name).mkdir()
    (tmp_path / "dead" / "qmp.sock").touch()
    for name in ("b", "a"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / name / "qmp.sock"))
    assert list(served_names(tmp_path)) == ["a", "b"]


def test_the_directory_is_for_its_owner_alone_and_goes_with_the_lock(tmp_path: Path) -> None:
    paths = VmPaths("vm", tmp_path / "root")
    with none_left_open():
        lock = NameLock(paths)
        assert stat.S_IMODE(paths.directory.stat().st_mode) == 0o700
        assert paths.lock.read_text() == f"{os.getpid()}\n"
        lock.release()
    assert not paths.directory.exists()


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    paths = VmPaths("vm", tmp_path)
    lock = NameLock(paths)
    (paths.directory / "log").touch()
    lock.release()
    assert os.listdir(paths.directory) == ["log"]


def test_a_name_is_served_once(tmp_path: Path) -> None:
    paths = VmPaths("vm", tmp_path)
    lock = NameLock(paths)
    with none_left_open(), pytest.raises(OperatorError, match=f"by process {os.getpid()}"):
        NameLock(paths)
    NameLock(VmPaths("other", tmp_path)).release()
    lock.release()
    NameLock(paths).release()


def test_another_process_has_it_until_it_dies(tmp_path: Path) -> None:
    paths = VmPaths("vm", tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OperatorError, match=f"by process {holder.pid}") as caught:
            NameLock(paths)
        assert caught.value.hint
        holder.kill()
    assert paths.lock.exists()
    NameLock(paths).release()


def test_a_lock_on_a_file_that_its_holder_just_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the holder's release and locked after it, the file is nobody's any more."""
    paths = VmPaths("vm", tmp_path)
    first = NameLock(paths)
    real_open = os.open
    opened: list[int] = []

    def open_then_release(path: object, *args: int) -> int:
        fd = real_open(paths.lock, *args)
        if not opened:
            first.release()
        opened.append(fd)
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_then_release)
        second = NameLock(paths)
    assert len(opened) == 2
    with pytest.raises(OperatorError, match="already served"):
        NameLock(paths)
    second.release()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="cannot use the runtime directory") as caught:
        NameLock(VmPaths("vm", tmp_path / "file"))
    assert "BALLAST_RUNTIME_DIR" in caught.value.hint


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's directory could hold somebody else's sockets."""
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    if os.stat(tmp_path).st_uid == 0:
        os.chown(tmp_path, 65534, 65534)
    with pytest.raises(OperatorError, match="belongs to another user"):
        NameLock(VmPaths("vm", tmp_path))

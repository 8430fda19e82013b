from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast_images import doctor
from ballast_images.accelerator import Accelerator
from ballast_images.doctor import Check, probes
from ballast_images.qemu import REQUIRED_DEVICES, Qemu
from ballast_protocol.errors import OperatorError

GOOD = Qemu(Path("/opt/qemu"), "11.1.3", frozenset(REQUIRED_DEVICES), "path")


@pytest.fixture(autouse=True)
def good_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which every check passes; tests spoil one thing each."""
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "find_qemu", lambda path, should_provision: GOOD)
    monkeypatch.setattr(doctor, "accelerator", lambda qemu: Accelerator("kvm", "ran"))
    monkeypatch.setattr(doctor, "find_mirror", lambda: "http://mirror.example/debian")
    monkeypatch.setattr(doctor, "find_keyring", lambda: Path("/keyring"))
    monkeypatch.setattr(doctor, "CACHE_BYTES_NEEDED", 1)
    monkeypatch.setattr(doctor, "MEMORY_BYTES_NEEDED", 1)


def found(tmp_path: Path) -> dict[str, Check]:
    return {check.name: check for check in probes(runtime_dir=tmp_path / "run")}


def test_a_good_machine_needs_no_cure(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert list(checks) == [
        *("QEMU", "acceleration", "shared memory", "memory", "/dev/shm", "file limits"),
        *("cache", "package source", "runtime directory"),
    ]
    checks.pop("/dev/shm")  # its size is this machine's own affair
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert {check.cure for check in checks.values()} == {""}


def refuse(*_: object, **__: object) -> Qemu:
    raise OperatorError("there is none", hint="Get one.")


def test_no_qemu_is_no_fault_where_one_can_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "find_qemu", refuse)
    checks = found(tmp_path)
    assert checks["QEMU"].verdict == "warn"
    assert "acceleration" not in checks


def test_no_qemu_and_nowhere_to_get_it_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "find_qemu", refuse)
    monkeypatch.setattr(doctor, "find_mirror", refuse)
    checks = found(tmp_path)
    assert (checks["QEMU"].verdict, checks["QEMU"].cure) == ("fail", "Get one.")
    assert (checks["package source"].verdict, checks["package source"].cure) == ("warn", "Get one.")


def test_a_named_qemu_is_not_replaced_by_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_qemu", refuse)
    assert next(probes(Path("/mine"))).verdict == "fail"


def test_emulation_is_a_warning_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "accelerator", lambda qemu: Accelerator("tcg", "no such luck"))
    monkeypatch.setattr(doctor, "KVM_DEVICE", tmp_path / "none")
    check = found(tmp_path)["acceleration"]
    assert (check.verdict, check.detail) == ("warn", "no such luck")
    assert "TCG" in check.cure


def test_a_device_that_may_not_be_opened_names_the_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "accelerator", lambda qemu: Accelerator("tcg", "no permission"))
    monkeypatch.setattr(doctor, "KVM_DEVICE", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert "usermod -aG kvm" in found(tmp_path)["acceleration"].cure


def no_memfd(name: str, flags: int) -> int:
    raise PermissionError(13, "Permission denied")


def test_a_kernel_without_memfd_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "memfd_create", no_memfd)
    check = found(tmp_path)["shared memory"]
    assert check.verdict == "fail"
    assert "Permission denied" in check.detail


def test_holes_that_free_nothing_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_FALLOC_FL_PUNCH_HOLE", 0)
    check = found(tmp_path)["shared memory"]
    assert (check.verdict, "stays resident" in check.detail) == ("fail", True)


def test_little_memory_and_a_full_disk_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "MEMORY_BYTES_NEEDED", 1 << 60)
    monkeypatch.setattr(doctor, "CACHE_BYTES_NEEDED", 1 << 60)
    checks = found(tmp_path)
    assert (checks["memory"].verdict, checks["cache"].verdict) == ("warn", "warn")
    assert "--memory" in checks["memory"].cure
    assert "BALLAST_CACHE" in checks["cache"].cure


def test_a_cache_that_cannot_be_made_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "file" / "cache"))
    assert found(tmp_path)["cache"].verdict == "fail"


@pytest.fixture
def few_files() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
    yield 500
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_few_open_files_are_warned_of(few_files: int, tmp_path: Path) -> None:
    check = found(tmp_path)["file limits"]
    assert (check.verdict, check.detail) == ("warn", "500 open files")
    assert "ulimit -n 1024" in check.cure


def test_a_runtime_directory_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checks = {check.name: check for check in probes(runtime_dir=tmp_path / "file" / "run")}
    assert checks["runtime directory"].verdict == "fail"
    assert "XDG_RUNTIME_DIR" in checks["runtime directory"].cure

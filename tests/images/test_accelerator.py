from __future__ import annotations

import json
from pathlib import Path

import pytest

from ballast_images import accelerator as accelerator_module
from ballast_images.accelerator import accelerator, boot_sector, run_proof
from ballast_images.qemu import Qemu

CODE_ORIGIN = 0x7C00


def fake_qemu(path: Path, script: str) -> Qemu:
    path.write_text(f"#!/bin/sh\necho run >>{path}.log\n{script}\n")
    path.chmod(0o755)
    return Qemu(path, "11.1.3", frozenset(), "explicit")


@pytest.fixture(autouse=True)
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device file that can be opened, and an empty cache."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator_module, "KVM_DEVICE", device)
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    return device


def test_the_sector_is_one_that_a_bios_boots() -> None:
    sector = boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"


def test_the_sectors_addresses_fit_its_layout() -> None:
    sector = boot_sector()
    pointer = int.from_bytes(sector[0x49:0x4B], "little") - CODE_ORIGIN
    limit = int.from_bytes(sector[pointer : pointer + 2], "little")
    table = int.from_bytes(sector[pointer + 2 : pointer + 6], "little") - CODE_ORIGIN
    descriptors = sector[table : table + limit + 1]
    assert table + limit + 1 == pointer
    assert descriptors[8:16] == bytes.fromhex("00000000009a2000")
    target = int.from_bytes(sector[0x58:0x5A], "little") - CODE_ORIGIN
    assert sector[target : target + 5] == bytes.fromhex("b810000000")


def test_kvm_counts_once_the_sector_has_run_and_is_not_asked_again(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path / "qemu", "exit 65")
    assert accelerator(qemu).name == "kvm"
    assert accelerator(qemu).name == "kvm"
    assert Path(f"{qemu.command}.log").read_text() == "run\n"


def test_kvm_that_gives_up_on_the_guest_does_not_count(tmp_path: Path) -> None:
    script = "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 1000"
    found = accelerator(fake_qemu(tmp_path / "qemu", script))
    assert found.name == "tcg"
    assert "KVM internal error" in found.reason


def test_kvm_that_does_not_start_does_not_count(tmp_path: Path) -> None:
    script = "echo 'Could not access KVM kernel module' >&2; exit 1"
    found = accelerator(fake_qemu(tmp_path / "qemu", script))
    assert found.name == "tcg"
    assert "Could not access KVM" in found.reason


def test_a_guest_that_hangs_is_ended(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path / "qemu", "exec sleep 1000")
    assert run_proof(qemu, "kvm", timeout_s=0.05) == "the sector did not end within 0.05 s"


def test_without_the_device_nothing_is_run(tmp_path: Path, kvm: Path) -> None:
    kvm.unlink()
    found = accelerator(fake_qemu(tmp_path / "qemu", "exit 65"))
    assert found.name == "tcg"
    assert not (tmp_path / "qemu.log").exists()


def test_a_damaged_record_is_made_anew(tmp_path: Path) -> None:
    record = tmp_path / "cache" / "accelerator.json"
    record.parent.mkdir()
    for damage in ("", "[]", "{}", '{"x": 1}'):
        record.write_text(damage)
        assert accelerator(fake_qemu(tmp_path / "qemu", "exit 65")).name == "kvm"
        assert len(json.loads(record.read_text())) == 1


@pytest.mark.qemu
def test_the_sector_runs_to_its_end_where_everything_is_emulated(qemu: Qemu) -> None:
    assert run_proof(qemu, "tcg", timeout_s=60) is None

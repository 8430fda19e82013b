from __future__ import annotations

from pathlib import Path

import pytest

from ballast_images import qemu as qemu_module
from ballast_images.provision import Tree
from ballast_images.qemu import BINARY, REQUIRED_DEVICES, Qemu, ask, find_qemu
from ballast_protocol.errors import OperatorError


@pytest.fixture(autouse=True)
def no_other_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and a PATH without QEMU."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/nowhere")


def make_qemu(path: Path, *devices: str, version: str = "11.1.3") -> Path:
    listed = "".join(f'name "{device}", bus PCI\n' for device in ("virtio-rng-pci", *devices))
    path.write_text(
        f"#!/bin/sh\ncase $1 in\n--version) echo 'QEMU emulator version {version} (Test)' ;;\n"
        f"*) echo '{listed}' ;;\nesac\n"
    )
    path.chmod(0o755)
    return path


def test_the_named_one_is_used(tmp_path: Path) -> None:
    path = make_qemu(tmp_path / "mine", *REQUIRED_DEVICES)
    assert find_qemu(path) == Qemu(path, "11.1.3", frozenset(REQUIRED_DEVICES), "explicit")


def test_the_named_one_must_have_the_devices_whatever_its_version(tmp_path: Path) -> None:
    path = make_qemu(tmp_path / "mine", "vfio-user-pci", version="12.0.0")
    make_qemu(tmp_path / "bin" / BINARY, *REQUIRED_DEVICES)
    with pytest.raises(OperatorError, match=r"has no vhost-user-test-device-pci$") as raised:
        find_qemu(path)
    assert "QEMU 10.2 or later" in raised.value.hint


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "not a program"]
)
def test_the_named_one_must_be_a_qemu(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine"
    path.write_text(text)
    path.chmod(0o755)
    with pytest.raises(OperatorError, match=r"does not run|is not a QEMU"):
        find_qemu(path)


def test_a_good_one_on_path_is_found(tmp_path: Path) -> None:
    path = make_qemu(tmp_path / "bin" / BINARY, *REQUIRED_DEVICES)
    found = find_qemu(should_provision=False)
    assert (found.command, found.origin) == (path, "path")


def test_one_on_path_that_lacks_a_device_is_passed_over(tmp_path: Path) -> None:
    make_qemu(tmp_path / "bin" / BINARY, "vfio-user-pci")
    with pytest.raises(OperatorError, match="no QEMU with Ballast's devices"):
        find_qemu(should_provision=False)


def test_a_broken_one_on_path_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "bin" / BINARY
    path.write_text("#!/bin/sh\nexit 127\n")
    path.chmod(0o755)
    with pytest.raises(OperatorError, match="no QEMU with Ballast's devices"):
        find_qemu(should_provision=False)


def test_a_provisioned_one_runs_from_a_path_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stands in: it shows that the wrapper passes on every word as it is."""
    root = tmp_path / "a cache" / "root"
    loader = root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    make_qemu(loader, *REQUIRED_DEVICES)
    text = loader.read_text().replace(
        "case $1",
        'echo "$QEMU_MODULE_DIR|$*" >"$0.log"\nwhile [ "$1" != -L ]; do shift; done\n'
        "shift 4\ncase $1",
    )
    loader.write_text(text)
    monkeypatch.setattr(qemu_module, "cached_tree", lambda name: Tree(root, "digest"))
    found = find_qemu()
    assert found.origin == "provisioned"
    assert found.command == root.parent / "bin" / BINARY
    ask(found.command, "provisioned")
    modules, _, words = Path(f"{loader}.log").read_text().partition("|")
    assert modules == f"{root}/usr/lib/x86_64-linux-gnu/qemu"
    assert f"-L {root}/usr/share/seabios -machine none -device help" in words

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from ballast_images.modules import ModuleTree
from ballast_protocol.errors import OperatorError


def module(name: str, *needs: str) -> bytes:
    return b"\0".join(
        [
            b"\x7fELF",
            b"license=GPL",
            f"depends={','.join(needs)}".encode(),
            b"name=" + name.encode(),
            b"",
        ]
    )


@pytest.fixture
def tree(tmp_path: Path) -> ModuleTree:
    directory = tmp_path / "6.12.0-test"
    kernel = directory / "kernel" / "drivers"
    kernel.mkdir(parents=True)
    (kernel / "top.ko.xz").write_bytes(lzma.compress(module("top", "middle-one", "builtin")))
    (kernel / "middle-one.ko.xz").write_bytes(lzma.compress(module("middle_one", "base")))
    (kernel / "base.ko").write_bytes(module("base"))
    (kernel / "other.ko").write_bytes(module("other"))
    (directory / "modules.builtin").write_text("kernel/lib/builtin.ko\n")
    return ModuleTree(directory)


def test_modules_come_unpacked_with_what_they_need(tree: ModuleTree) -> None:
    entries = {entry.path: entry.data for entry in tree.entries(["top"])}
    base = "usr/lib/modules/6.12.0-test/"
    assert entries[f"{base}kernel/drivers/top.ko"] == module("top", "middle-one", "builtin")
    assert entries[f"{base}kernel/drivers/middle-one.ko"] == module("middle_one", "base")
    assert f"{base}kernel/drivers/other.ko" not in entries
    assert entries[f"{base}modules.dep"].decode().splitlines() == [
        "kernel/drivers/base.ko:",
        "kernel/drivers/middle-one.ko: kernel/drivers/base.ko",
        "kernel/drivers/top.ko: kernel/drivers/middle-one.ko kernel/drivers/base.ko",
    ]


def test_a_built_in_module_needs_no_file(tree: ModuleTree) -> None:
    paths = [entry.path for entry in tree.entries(["builtin", "base"])]
    assert paths == [
        "usr/lib/modules/6.12.0-test/kernel/drivers/base.ko",
        "usr/lib/modules/6.12.0-test/modules.dep",
    ]


def test_a_missing_module_is_an_error(tree: ModuleTree) -> None:
    with pytest.raises(OperatorError, match=r"6\.12\.0-test has no module nonesuch"):
        list(tree.entries(["nonesuch"]))

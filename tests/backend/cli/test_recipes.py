"""`ballast launch --print-command`, without a QEMU that runs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from ballast.cli import launch, recipes
from ballast.cli.main import app
from ballast_images.qemu import Qemu
from support.plans import plan


@pytest.fixture(autouse=True)
def here(runtime_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plans of this machine have a QEMU that nobody looks for."""
    planned = plan("-nographic", accelerator="tcg")
    monkeypatch.setattr(launch, "_plan_here", lambda *_: planned)
    return runtime_root


def ballast(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["launch", "web", *arguments])


def test_a_shell_is_what_it_is_printed_for_by_default(here: Path) -> None:
    result = ballast("--print-command", "--", "-nographic")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"ballast serve web --qemu-qmp {here}/web/monitor.sock\n")


def test_services_have_their_own_directories_and_whole_paths() -> None:
    result = ballast("--print-command", "--format", "systemd", "--user", "vm", "--", "-nographic")
    assert f"ExecStart={recipes._program()} serve web" in result.stdout
    assert "/run/ballast/web/monitor.sock" in result.stdout
    assert "User=vm\n" in result.stdout
    assert "# /etc/systemd/system/vm-web.service\n[Unit]" in result.stdout
    assert "systemctl daemon-reload" in result.stderr


def test_what_goes_to_standard_output_is_the_file_and_nothing_else() -> None:
    result = ballast("--print-command", "--format", "libvirt", "--", "-nographic")
    assert ElementTree.fromstring(result.stdout).findtext("name") == "web"
    result = ballast("--print-command", "--format", "kubernetes")
    assert yaml.safe_load(result.stdout)["kind"] == "Pod"


def test_containers_need_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object, **__: object) -> Qemu:
        raise AssertionError("nothing is to be looked for")

    monkeypatch.setattr(launch, "_plan_here", unexpected)
    for form in ("compose", "kubernetes"):
        result = ballast("--print-command", "--format", form)
        assert result.exit_code == 0
        assert "- --accel\n" in result.stdout
        assert "guest for trials boots" in result.stderr


def test_files_can_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "units"
    result = ballast("--print-command", "--format", "systemd", "--output", str(directory))
    assert result.exit_code == 0
    assert sorted(each.name for each in directory.iterdir()) == [
        *("ballast-web.service", "ballast.conf", "vm-web.service"),
    ]
    assert "belongs to /etc/systemd/system/vm-web.service" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "systemd"],
        ["--output", "/tmp/x"],
        ["--print-command", "--user", "vm"],
        ["--print-command", "--format", "xen"],
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str]) -> None:
    assert ballast(*arguments).exit_code == 2

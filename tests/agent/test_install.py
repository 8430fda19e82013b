from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ballast_agent import install as install_module
from ballast_agent.__main__ import run
from ballast_agent.install import Installer
from ballast_protocol.errors import OperatorError


@pytest.fixture
def pyz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run from one file."""
    archive = tmp_path / "ballast-agent.pyz"
    shutil.make_archive(str(tmp_path / "stage"), "zip", Path(install_module.__file__).parent)
    (tmp_path / "stage.zip").rename(archive)
    monkeypatch.setattr(sys, "argv", [str(archive)])
    return archive


def test_a_systemd_unit(pyz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    (root / "lib/systemd").mkdir(parents=True)
    options = ["--", "--reserve", "512M", "--device", "/dev/a b%$c"]
    assert run(["install", "--root", str(root), *options]) == 0
    program, unit = root / install_module.PROGRAM, root / install_module.SYSTEMD_UNIT
    assert capsys.readouterr().out == f"wrote {program}\nwrote {unit}\n"
    assert program.read_bytes() == pyz.read_bytes()
    assert os.access(program, os.X_OK)
    text = unit.read_text()
    assert (
        "ExecStart=/usr/local/sbin/ballast-agent run --reserve 512M --device '/dev/a b%%$$c'\n"
        in text
    )
    settings = [line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")]
    hiding = ("Protect", "Private", "ReadOnly", "Inaccessible", "RootDirectory", "DynamicUser")
    assert not [name for name in settings if name.startswith(hiding)]

    assert run(["install", "--root", str(root), "--remove"]) == 0
    assert not unit.exists()
    assert not program.exists()


def test_an_openrc_script_is_a_shell_script(pyz: Path, tmp_path: Path) -> None:
    installer = Installer(tmp_path, "openrc")
    installer.install(["--reserve", "512M"])
    assert os.access(installer.service, os.X_OK)
    words = '. "$1"; printf "%s|" "$supervisor" "$command" $command_args "$retry"'
    done = subprocess.run(
        ["sh", "-c", words, "sh", str(installer.service)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "supervise-daemon|/usr/local/sbin/ballast-agent|run|--reserve|512M|TERM/15/KILL/5|"
    )


def test_an_installed_package_is_started_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/bin/{name}")
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/openrc-run").touch()
    installer = Installer(tmp_path, "auto")
    assert installer.install([]) == [tmp_path / install_module.OPENRC_SCRIPT]
    assert "command=/opt/bin/ballast-agent\n" in installer.service.read_text()


def test_without_a_service_manager_there_is_no_guessing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["install", "--root", str(tmp_path)]) == 1
    assert "--init" in capsys.readouterr().err


def test_options_that_run_refuses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["install", "--root", str(tmp_path), "--init", "systemd", "--", "--reserve", "much"])
    assert caught.value.code == 2
    assert not list(tmp_path.iterdir())


def test_starting_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def runs(command: list[str], *, check: bool) -> None:
        commands.append(command)
        if command[1] == "restart":
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", runs)
    with pytest.raises(OperatorError, match="systemctl"):
        Installer(tmp_path, "systemd").start()
    assert [command[1] for command in commands] == ["daemon-reload", "enable", "restart"]

"""Units, checked by systemd itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ballast.daemon.recipes.model import Recipe, Site
from ballast.daemon.recipes.systemd import command_line, systemd
from support.plans import AWKWARD, from_systemd, plan

SITE = Site(ballast=Path("/opt/ballast/bin/ballast"))


def texts(recipe: Recipe) -> dict[str, str]:
    return {file.path.name: file.text for file in recipe.files}


def value(unit: str, key: str) -> str:
    """Return what a key of a unit is set to; lines may go on."""
    found = re.search(rf"^{key}=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    assert found is not None, key
    return found[1]


def verified(directory: Path, recipe: Recipe) -> str:
    """Return what systemd says of the units, which it reads with programs that are there."""
    for name, text in texts(recipe).items():
        real = text.replace(str(SITE.ballast), sys.executable)
        (directory / name).write_text(real.replace("/usr/bin/qemu-system-x86_64", "/bin/true"))
    units = [str(each) for each in directory.glob("*.service")]
    assert len(units) == 2
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_COLOR": "0"},
    )
    ours = [line for line in result.stderr.splitlines() if "web" in line]
    return "\n".join(ours) or ("" if result.returncode == 0 else result.stderr)


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
@pytest.mark.parametrize("transport", ["vhost-user", "vfio-user"])
def test_systemd_finds_nothing_wrong(tmp_path: Path, transport: str) -> None:
    assert verified(tmp_path, systemd(plan(*AWKWARD, transport=transport), SITE)) == ""


@needs_systemd
def test_systemd_would_say_so(tmp_path: Path) -> None:
    recipe = systemd(plan(), SITE)
    broken = [(each.path, each.text.replace("Restart=", "Restrt=")) for each in recipe.files]
    files = tuple(type(recipe.files[0])(path, text) for path, text in broken)
    assert "Restrt" in verified(tmp_path, Recipe(files))


def test_systemd_starts_what_the_plan_says() -> None:
    vm = plan(*AWKWARD)
    units = texts(systemd(vm, SITE))
    program, *arguments = from_systemd(value(units["vm-web.service"], "ExecStart"))
    assert [program, *arguments[2:]] == vm.command(SITE.paths(vm))
    serve = from_systemd(value(units["ballast-web.service"], "ExecStart"))
    assert serve[:3] == ["/opt/ballast/bin/ballast", "serve", "web"]
    assert serve[-2:] == ["--keeper", "systemd"]


def test_systemd_keeps_the_balloon_and_ends_it_last() -> None:
    units = texts(systemd(plan(), SITE))
    balloon, vm = units["ballast-web.service"], units["vm-web.service"]
    assert value(balloon, "Type") == "notify"
    assert int(value(balloon, "FileDescriptorStoreMax")) >= 4096
    assert value(balloon, "RuntimeDirectory") == "ballast/web"
    assert value(balloon, "RuntimeDirectoryPreserve") == "restart"
    assert "ballast-web.service" in value(vm, "After").split()
    assert value(vm, "Wants") == "ballast-web.service"
    assert not re.search(r"^(Requires|BindsTo|PartOf)=", vm, re.MULTILINE)


def test_both_run_as_one_user_who_is_made() -> None:
    units = texts(systemd(plan(), Site(user="libvirt-qemu")))
    assert value(units["ballast-web.service"], "User") == "libvirt-qemu"
    assert value(units["vm-web.service"], "User") == "libvirt-qemu"
    assert units["ballast.conf"].splitlines()[1] == "m libvirt-qemu kvm"
    assert "kvm" not in "".join(texts(systemd(plan(accelerator="tcg"), SITE)).values())


def test_the_guest_is_shut_down_by_its_power_button() -> None:
    unit = texts(systemd(plan(), SITE))["vm-web.service"]
    shell, flag, script = from_systemd(value(unit, "ExecStop"))
    assert (shell, flag) == ("/bin/sh", "-c")
    assert "/opt/ballast/bin/qmp-shell /run/ballast/web/qemu-qmp.sock" in script
    assert "--pid=$MAINPID" in script


def test_files_that_a_service_cannot_read_are_told() -> None:
    home = Site(home=Path("/usr/bin"))
    assert any("/usr/bin/qemu-system-x86_64" in step for step in systemd(plan(), home).steps)
    assert not any("cannot read" in step for step in systemd(plan(), SITE).steps)


def test_words_are_quoted_where_they_must_be() -> None:
    assert command_line(["/q", "-a", "b c", "-d"]) == '/q \\\n    -a "b c" \\\n    -d'
    assert from_systemd(command_line(["/q", "%$\\\"' ;"])) == ["/q", "%$\\\"' ;"]

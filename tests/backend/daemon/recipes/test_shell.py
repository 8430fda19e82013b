from __future__ import annotations

import shlex
from pathlib import Path

from ballast.daemon.recipes.model import Site
from ballast.daemon.recipes.shell import qemu, shell
from support.plans import AWKWARD, from_shell, plan

SITE = Site(runtime=Path("/run/test"))


def test_the_balloon_then_qemu() -> None:
    vm = plan(*AWKWARD, target="512M", deflate_on_oom=True)
    (file,) = shell(vm, SITE).files
    serve, _, command = file.text.partition("\n")
    assert shlex.split(serve) == [
        *("ballast", "serve", "web", "--qemu-qmp", "/run/test/web/monitor.sock"),
        *("--target", str(512 << 20), "--deflate-on-oom"),
    ]
    assert from_shell(command) == vm.command(SITE.paths(vm))


def test_vfio_user_is_served_as_such_and_not_migrated() -> None:
    recipe = shell(plan(transport="vfio-user", variant="intx"), SITE)
    assert "--transport vfio-user --variant intx\n" in recipe.files[0].text
    assert any("migrate" in step for step in recipe.steps)


def test_qemu_alone() -> None:
    vm = plan(*AWKWARD)
    recipe = qemu(vm, SITE)
    assert from_shell(recipe.files[0].text) == vm.command(SITE.paths(vm))
    assert "ballast serve web --qemu-qmp /run/test/web/monitor.sock" in recipe.steps[0]

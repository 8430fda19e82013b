"""All forms in which a VM can be printed."""

from __future__ import annotations

from typing import Literal, get_args

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes.compose import compose
from ballast.daemon.recipes.kubernetes import kubernetes
from ballast.daemon.recipes.libvirt import libvirt
from ballast.daemon.recipes.model import MakeRecipe, Recipe, Site
from ballast.daemon.recipes.shell import qemu, shell
from ballast.daemon.recipes.systemd import systemd

Format = Literal["shell", "qemu", "libvirt", "systemd", "compose", "kubernetes"]

FORMATS: dict[Format, MakeRecipe] = {
    "shell": shell,
    "qemu": qemu,
    "libvirt": libvirt,
    "systemd": systemd,
    "compose": compose,
    "kubernetes": kubernetes,
}

ELSEWHERE: frozenset[Format] = frozenset(("compose", "kubernetes"))
"""Forms in which QEMU is that of a container image, whatever this machine has."""

IN_THIS_SHELL: frozenset[Format] = frozenset(("shell", "qemu"))
"""Forms that are run by the user who asks, with his own runtime directory."""

assert set(get_args(Format)) == set(FORMATS)


def render(form: Format, plan: LaunchPlan, site: Site) -> Recipe:
    """Return the recipe for a VM."""
    return FORMATS[form](plan, site)

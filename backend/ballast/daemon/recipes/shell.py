"""The commands themselves, to be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

from ballast.daemon.launch import LaunchPlan, shell_lines
from ballast.daemon.recipes.model import Recipe, RecipeFile, Site, migration_steps, serve_arguments


def shell(plan: LaunchPlan, site: Site) -> Recipe:
    """Return two commands, for two shells: the balloon's and QEMU's."""
    paths = site.paths(plan)
    serve = shlex.join([str(site.ballast), *serve_arguments(plan, paths)])
    text = f"{serve}\n{shell_lines(plan.command(paths))}\n"
    steps = ("Run the first command, then the second in another shell; end the second first.",)
    return _recipe(plan, text, *steps, *migration_steps(plan))


def qemu(plan: LaunchPlan, site: Site) -> Recipe:
    """Return QEMU's command line alone."""
    paths = site.paths(plan)
    serve = shlex.join([str(site.ballast), *serve_arguments(plan, paths)])
    text = f"{shell_lines(plan.command(paths))}\n"
    steps = (f"Before QEMU starts, and until it has ended: {serve}",)
    return _recipe(plan, text, *steps, *migration_steps(plan))


def _recipe(plan: LaunchPlan, text: str, *steps: str) -> Recipe:
    return Recipe((RecipeFile(Path(f"{plan.config.name}.sh"), text),), steps)

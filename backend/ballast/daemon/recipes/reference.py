"""Writes the recipes of a sample VM into a page, as `ballast launch --print-command` prints them.

`python -m ballast.daemon.recipes.reference docs/recipes.md` replaces what stands between the two
marks there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes.formats import FORMATS, IN_THIS_SHELL, Format, render
from ballast.daemon.recipes.model import Recipe, Site
from ballast.qmp.reference import between_marks

PLAN = LaunchPlan(
    config=VmConfig(name="web", target=2 << 30),
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    memory_bytes=4 << 30,
    cpus=2,
    accelerator="kvm",
    image=None,
    arguments=("-drive", "file=/srv/web.qcow2,if=virtio", "-display", "none"),
)
COMMAND = (
    "ballast launch web --memory 4G --target 2G --print-command --format {form} \\\n  -- {more}"
)

_TITLES: dict[Format, tuple[str, str, str]] = {
    "shell": ("For a shell", "sh", "Two commands."),
    "qemu": ("QEMU alone", "sh", "For whatever starts QEMU in your house."),
    "libvirt": (
        "libvirt",
        "xml",
        "A domain. Without disks of your own it boots a guest for trials.",
    ),
    "systemd": ("systemd", "ini", "Two units, and the user that they run as."),
    "compose": (
        "Compose",
        "yaml",
        "Two containers: QEMU with the [keeper](keeper.md), and the worker, in the images of "
        "`make images` ([containers](containers.md)).",
    ),
    "kubernetes": ("Kubernetes", "yaml", "The same two containers as a pod, the worker a sidecar."),
}


def page_text() -> str:
    """Return the recipes as Markdown."""
    return "\n".join(line for form in FORMATS for line in _section(form))


def _section(form: Format) -> Iterator[str]:
    title, language, about = _TITLES[form]
    ballast = Path("ballast" if form in IN_THIS_SHELL else "/opt/ballast/bin/ballast")
    recipe = render(form, PLAN, Site(ballast=ballast))
    yield from (f"## {title}", "", about, "", "```sh")
    yield COMMAND.format(form=form, more=" ".join(PLAN.arguments))
    yield from ("```", "", *_files(recipe, language))
    yield from (*(f"- {_step(step)}" for step in recipe.steps), "")


def _files(recipe: Recipe, language: str) -> Iterator[str]:
    for file in recipe.files:
        if len(recipe.files) > 1:
            yield from (f"`{file.path}`:", "")
        yield from (f"```{language}", file.text.rstrip("\n"), "```", "")


def _step(step: str) -> str:
    """Return a step as Markdown, where a command by itself is shown as one."""
    first = step.split(" ", 1)[0]
    is_command = first in ("docker", "kubectl", "virsh", "systemd-sysusers") and "`" not in step
    return f"`{step}`" if is_command else step


def main(path: str) -> None:
    """Bring the recipes in a file up to date."""
    page = Path(path)
    page.write_text(between_marks(page.read_text(), page_text()))


if __name__ == "__main__":
    main(sys.argv[1])

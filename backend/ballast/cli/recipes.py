"""What `ballast launch --print-command` does with a recipe."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.common import messages, write_text
from ballast.daemon.launch import LaunchPlan
from ballast.daemon.paths import runtime_root
from ballast.daemon.recipes.formats import IN_THIS_SHELL, Format, render
from ballast.daemon.recipes.model import SYSTEM_RUNTIME, Recipe, Site
from ballast_protocol.errors import OperatorError

RecipeFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="With --print-command: shell (the default), QEMU's command line alone, a libvirt "
        "domain, systemd units, a Compose project, or a Kubernetes pod.",
        show_default=False,
    ),
]
RecipeOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIRECTORY",
        help="With --print-command: write the files there.",
        file_okay=False,
        show_default=False,
    ),
]
ServiceUser = Annotated[
    str | None,
    typer.Option(
        "--user",
        help="With --format systemd: who the services run as; ballast if not given.",
        show_default=False,
    ),
]


def check_options(
    *, print_command: bool, form: Format | None, output: Path | None, user: str | None
) -> None:
    """Refuse options that would do nothing.

    Raises:
        typer.BadParameter: They belong to something that was not asked for.
    """
    if not print_command and (form, output, user) != (None, None, None):
        raise typer.BadParameter("--format, --output and --user go with --print-command")
    if user is not None and form != "systemd":
        raise typer.BadParameter("--user goes with --format systemd")


def show(plan: LaunchPlan, form: Format, *, output: Path | None, user: str | None) -> None:
    """Print a recipe, or write its files; what to do with it goes to standard error.

    Raises:
        OperatorError: A file cannot be written.
    """
    recipe = render(form, plan, _site(form, user))
    if output is not None:
        _write(recipe, output)
    else:
        typer.echo(_joined(recipe), nl=False)
    for step in recipe.steps:
        messages.print(f"# {step}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _site(form: Format, user: str | None) -> Site:
    here = form in IN_THIS_SHELL
    return Site(
        ballast=Path("ballast") if here else _program(),
        runtime=runtime_root() if here else SYSTEM_RUNTIME,
        home=Path.home(),
        user=user or Site.user,
    )


def _program() -> Path:
    """Return this program, as somebody without our PATH starts it."""
    beside = Path(sys.executable).with_name("ballast")
    found = beside if os.access(beside, os.X_OK) else shutil.which("ballast")
    return Path(found or "/usr/bin/ballast")


def _joined(recipe: Recipe) -> str:
    """Return all files as one text, as `systemctl cat` does where there are several."""
    if len(recipe.files) == 1:
        return recipe.files[0].text
    return "\n".join(f"# {each.path}\n{each.text}" for each in recipe.files)


def _write(recipe: Recipe, directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot make {directory}: {error.strerror}") from error
    for file in recipe.files:
        write_text(directory / file.path.name, file.text)
        messages.print(
            f"{directory / file.path.name}: belongs to {file.path}"
            if file.path.is_absolute()
            else str(directory / file.path.name),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

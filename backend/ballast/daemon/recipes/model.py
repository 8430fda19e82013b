"""What a recipe is made of, and what it is made from besides the plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.paths import VmPaths

SYSTEM_RUNTIME = Path("/run/ballast")
"""Where services and containers have their runtime directories."""


@dataclass(frozen=True)
class Site:
    """The place where a recipe is used, as far as the plan does not tell.

    Attributes:
        ballast: The `ballast` program there.
        runtime: The directory that holds one runtime directory for each VM.
        home: The home directory of whoever asks: nothing in it is there for a service.
        user: Who systemd's services run as: QEMU may open the sockets then, and nobody else.
        backend_image: The container image of the worker.
        vm_image: The container image with QEMU, the keeper and a guest for trials.
    """

    ballast: Path = Path("ballast")
    runtime: Path = SYSTEM_RUNTIME
    home: Path = Path("/root")
    user: str = "ballast"
    backend_image: str = "localhost/ballast:latest"
    vm_image: str = "localhost/ballast-vm:latest"

    def paths(self, plan: LaunchPlan) -> VmPaths:
        """Return the VM's files at this site."""
        return VmPaths(plan.config.name, self.runtime)


@dataclass(frozen=True)
class RecipeFile:
    """One file of a recipe.

    Attributes:
        path: Where it belongs; relative if that is for whoever uses it to choose.
        text: What is in it, with a newline at its end.
    """

    path: Path
    text: str


@dataclass(frozen=True)
class Recipe:
    """What is printed for a VM.

    Attributes:
        files: What to write.
        steps: What to do with it, and what to know before: a sentence or a command each.
    """

    files: tuple[RecipeFile, ...]
    steps: tuple[str, ...] = ()


MakeRecipe = Callable[[LaunchPlan, Site], Recipe]


def serve_arguments(plan: LaunchPlan, paths: VmPaths) -> list[str]:
    """Return what `ballast` is told to serve a plan's balloon, `serve` first."""
    config = plan.config
    arguments = ["serve", config.name, "--qemu-qmp", str(paths.monitor)]
    if config.target:
        arguments += ["--target", str(config.target)]
    if config.deflate_on_oom:
        arguments.append("--deflate-on-oom")
    return [*arguments, *transport_arguments(plan)]


def transport_arguments(plan: LaunchPlan) -> tuple[str, ...]:
    """Return what `ballast` is told of a transport that is not the default."""
    config = plan.config
    if config.transport == "vhost-user":
        return ()
    return "--transport", config.transport, "--variant", config.variant


def private_files(plan: LaunchPlan, site: Site) -> list[Path]:
    """Return the files of a plan that only the user who asks can read."""
    image = (plan.image.kernel, plan.image.initrd) if plan.image else ()
    return [each for each in (site.ballast, plan.qemu, *image) if site.home in each.parents]


def private_steps(plan: LaunchPlan, site: Site) -> tuple[str, ...]:
    """Return what to do about files that a service cannot read."""
    files = private_files(plan, site)
    if not files:
        return ()
    return (
        f"In {site.home}, where a service cannot read them, are: "
        f"{', '.join(map(str, files))}. Install them elsewhere, and pass --qemu and your own disk.",
    )


def migration_steps(plan: LaunchPlan) -> tuple[str, ...]:
    """Return the warning that goes with vfio-user."""
    if plan.config.transport != "vfio-user":
        return ()
    return ("Do not migrate this VM: QEMU would not refuse, and lose its balloon.",)


def dns_label(name: str) -> str:
    """Return a VM's name as RFC 1123 wants it, which container engines and Kubernetes follow."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-")

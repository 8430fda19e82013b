"""What the two containers of a VM do, whoever runs them.

QEMU and the keeper share one, because they have to live equally long; the worker has the other, and
may come and go. They share a directory of sockets: guest memory comes over these, as descriptors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ballast.daemon.launch import LaunchPlan, shell_lines
from ballast.daemon.recipes.model import Site, migration_steps, serve_arguments
from ballast_images.guest import GuestImage

USER_ID = 65534
"""Who both run as; nothing in them needs root."""

GUEST = GuestImage(Path("/guest/vmlinuz"), Path("/guest/initrd"), "")
"""The guest for trials in the image with QEMU."""

WAIT_SECONDS = 600
"""How long the worker waits for the keeper, whose image may have to be pulled first."""

WORKER_MEMORY_BYTES = 256 << 20
"""What one worker may use, spares and page tables included."""

QEMU_OVERHEAD_BYTES = 512 << 20
"""What QEMU and the keeper may use besides the guest's memory."""


def keeper_socket(site: Site) -> Path:
    """Return where the keeper waits for workers."""
    return site.runtime / "keeper.sock"


def worker_arguments(plan: LaunchPlan, site: Site) -> list[str]:
    """Return what `ballast` is told in the worker's container."""
    keeper = ["--keeper", str(keeper_socket(site)), "--keeper-timeout", str(WAIT_SECONDS)]
    return [*serve_arguments(plan, site.paths(plan)), *keeper]


def vm_script(plan: LaunchPlan, site: Site) -> str:
    """Return the shell script that runs keeper and QEMU; QEMU is the container's process 1.

    QEMU gives up if nobody listens when it starts, so it waits for the worker.
    """
    paths = site.paths(plan)
    device = paths.device(plan.config.transport)
    return (
        f"ballast keeper --socket {keeper_socket(site)} &\n"
        f"until [ -S {device} ]; do sleep 0.1; done\n"
        f"exec {shell_lines(_inside(plan).command(paths))}\n"
    )


def power_down_script(plan: LaunchPlan, site: Site) -> str:
    """Return what presses the guest's power button, and waits until QEMU has ended."""
    socket = site.paths(plan).qemu_qmp
    return f"echo system_powerdown | qmp-shell {socket} && exec tail --pid=1 -f /dev/null\n"


def vm_memory_bytes(plan: LaunchPlan) -> int:
    """Return the most that the container of QEMU may use: guest memory is charged to it."""
    return plan.memory_bytes + QEMU_OVERHEAD_BYTES


def common_steps(plan: LaunchPlan) -> Iterator[str]:
    """Yield what is to be known of the containers."""
    if plan.arguments:
        yield "Mount whatever files your QEMU arguments name into the container of QEMU."
    yield from migration_steps(plan)


def _inside(plan: LaunchPlan) -> LaunchPlan:
    """Return the plan as the image with QEMU has it."""
    return dataclasses.replace(
        plan,
        qemu=Path(plan.qemu.name),
        image=GUEST if plan.image else None,
        arguments=("-display", "none", *plan.arguments) if plan.arguments else (),
    )

"""What the two containers of a VM do, whoever runs them.

QEMU and the keeper share one, because they have to live equally long; the worker has the other, and
may come and go. They share a directory of sockets: guest memory comes over these, as descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes.model import Site, migration_steps, serve_arguments, transport_arguments

USER_ID = 65534
"""Who both run as; nothing in them needs root."""

WAIT_SECONDS = 600
"""How long one waits for the other, whose image may have to be pulled first."""

WORKER_MEMORY_BYTES = 256 << 20
"""What one worker may use, page tables included."""

QEMU_OVERHEAD_BYTES = 512 << 20
"""What QEMU and the keeper may use besides the guest's memory."""


def keeper_socket(site: Site) -> Path:
    """Return where the keeper waits for workers."""
    return site.runtime / "keeper.sock"


def worker_arguments(plan: LaunchPlan, site: Site) -> list[str]:
    """Return what `ballast` is told in the worker's container."""
    keeper = ["--keeper", str(keeper_socket(site)), "--keeper-timeout", str(WAIT_SECONDS)]
    return [*serve_arguments(plan, site.paths(plan)), *keeper]


def vm_arguments(plan: LaunchPlan) -> list[str]:
    """Return what `ballast` is told in the container of QEMU.

    It runs a keeper, and QEMU as soon as the worker serves. QEMU is the one of the image.
    """
    # What QEMU would show, nobody would see; the operator may still say something else after it.
    arguments = ("--", "-display", "none", *plan.arguments) if plan.arguments else ()
    return [
        *("launch", plan.config.name, "--keeper", "--worker-timeout", str(WAIT_SECONDS)),
        *("--memory", str(plan.memory_bytes), "--cpus", str(plan.cpus)),
        *("--accel", plan.accelerator, *transport_arguments(plan), *arguments),
    ]


def power_down_script(plan: LaunchPlan, site: Site) -> str:
    """Return what presses the guest's power button, and waits until its container has ended."""
    socket = site.paths(plan).qemu_qmp
    return f"echo system_powerdown | qmp-shell {socket} && exec tail --pid=1 -f /dev/null\n"


def vm_memory_bytes(plan: LaunchPlan) -> int:
    """Return the most that the container of QEMU may use: guest memory is charged to it."""
    return plan.memory_bytes + QEMU_OVERHEAD_BYTES


def common_steps(plan: LaunchPlan) -> Iterator[str]:
    """Yield what is to be known of the containers."""
    if plan.arguments:
        yield (
            "Mount whatever files your QEMU arguments name into the container of QEMU, where user "
            f"{USER_ID} may use them."
        )
    else:
        yield "The image's guest for trials boots; for one of your own add QEMU arguments after --."
    yield from migration_steps(plan)

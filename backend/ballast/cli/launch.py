"""`ballast launch`: QEMU and its balloon in one command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.common import QemuPath, TransportName, Variant, size_argument
from ballast.cli.keeper import OnlyKeeper, WorkerTimeout
from ballast.cli.recipes import RecipeFormat, RecipeOutput, ServiceUser, check_options, show
from ballast.daemon.beside import launch_beside
from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan
from ballast.daemon.launch import launch as launch_vm
from ballast.daemon.paths import check_name
from ballast.daemon.recipes.formats import ELSEWHERE
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import BINARY, find_qemu
from ballast_protocol.errors import OperatorError


def launch(
    vm: Annotated[str, typer.Argument(help="A name for the VM.", show_default=False)],
    qemu_arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- QEMU ARGUMENTS]",
            help="Everything after -- goes to QEMU: your disk, kernel, network, display.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        int, typer.Option("--memory", "-m", parser=size_argument, metavar="SIZE", help="RAM.")
    ] = "2G",  # type: ignore[assignment]  # the parser makes a number of it
    cpus: Annotated[int, typer.Option(min=1, help="Virtual CPUs.")] = 2,
    target: Annotated[
        int | None,
        typer.Option(parser=size_argument, metavar="SIZE", help="What the guest gets at start."),
    ] = None,
    deflate_on_oom: Annotated[
        bool, typer.Option(help="The guest may take memory back before it kills a process.")
    ] = False,
    transport: TransportName = "vhost-user",
    variant: Variant = "msix-mapped",
    qemu: QemuPath = None,
    accel: Annotated[
        str, typer.Option(help="kvm, tcg, or auto: kvm if it is proved to work here.")
    ] = "auto",
    keeper: OnlyKeeper = False,
    worker_timeout: WorkerTimeout = 60.0,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print how to run it, and run nothing.")
    ] = False,
    form: RecipeFormat = None,
    output: RecipeOutput = None,
    user: ServiceUser = None,
) -> None:
    """Run QEMU with a Ballast balloon in the foreground.

    Without QEMU arguments a small Debian guest boots on this terminal (Ctrl-A X ends it). With
    them, your own: `ballast launch web -m 4G -- -drive file=disk.qcow2,if=virtio
    -nographic`. Leave -m, -machine and the memory backend to Ballast: the guest's memory
    has to be shared. From another terminal: `ballast set web 1G --wait`.
    """
    check_options(print_command=print_command, form=form, output=output, user=user)
    config = VmConfig(
        name=check_name(vm),
        target=target,
        deflate_on_oom=deflate_on_oom,
        transport=transport,
        variant=variant,
    )
    if keeper and (target is not None or deflate_on_oom):
        raise typer.BadParameter("with --keeper, --target and --deflate-on-oom are `serve`'s")
    arguments = tuple(qemu_arguments or ())
    if print_command and form in ELSEWHERE:
        accel = "kvm" if accel == "auto" else accel
        program = qemu or Path(BINARY)
        plan = LaunchPlan(config, program, memory, cpus, accel, None, arguments)
    else:
        plan = _plan_here(config, qemu, memory, cpus, accel, arguments)
    if print_command:
        show(plan, form or "shell", output=output, user=user)
        return
    status = asyncio.run(launch_beside(plan, worker_timeout) if keeper else launch_vm(plan))
    if status != 0:
        raise OperatorError(f"QEMU ended with status {status}")


def _plan_here(
    config: VmConfig,
    qemu: Path | None,
    memory_bytes: int,
    cpus: int,
    accel: str,
    arguments: tuple[str, ...],
) -> LaunchPlan:
    """Return a plan with what this machine has, or can be given."""
    reporter = ConsoleReporter()
    found = find_qemu(qemu, reporter=reporter)
    return LaunchPlan(
        config=config,
        qemu=found.command,
        memory_bytes=memory_bytes,
        cpus=cpus,
        accelerator=accelerator(found).name if accel == "auto" else accel,
        image=None if arguments else build_guest(reporter=reporter),
        arguments=arguments,
    )

"""`ballast launch`: QEMU and its balloon in one command."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from ballast.cli.common import QemuPath, TransportName, Variant, size_argument
from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan
from ballast.daemon.launch import launch as launch_vm
from ballast.daemon.paths import check_name
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu
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
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the commands to paste, and run nothing.")
    ] = False,
) -> None:
    """Run QEMU with a Ballast balloon in the foreground.

    Without QEMU arguments a small Debian guest boots on this terminal (Ctrl-A X ends it). With
    them, your own: `ballast launch web -m 4G -- -drive file=disk.qcow2,if=virtio
    -nographic`. Leave -m, -machine and the memory backend to Ballast: the guest's memory
    has to be shared. From another terminal: `ballast set web 1G --wait`.
    """
    reporter = ConsoleReporter()
    arguments = tuple(qemu_arguments or ())
    found = find_qemu(qemu, reporter=reporter)
    plan = LaunchPlan(
        config=VmConfig(
            name=check_name(vm),
            target=target,
            deflate_on_oom=deflate_on_oom,
            transport=transport,
            variant=variant,
        ),
        qemu=found.command,
        memory_bytes=memory,
        cpus=cpus,
        accelerator=accelerator(found).name if accel == "auto" else accel,
        image=None if arguments else build_guest(reporter=reporter),
        arguments=arguments,
    )
    if print_command:
        typer.echo(plan.as_shell())
        return
    status = asyncio.run(launch_vm(plan))
    if status != 0:
        raise OperatorError(f"QEMU ended with status {status}")
